"""Archives that are whole, broken, or mean harm."""

import errno
import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import DataError
from pipeline.data.sources import extract
from pipeline.data.sources.extract import unpack

# 1024 and 0 bytes: sizes that end on a block of the archive
CONTENTS = {
    "attributes.txt": b"1 has_bill\n",
    "CUB/images.txt": b"1 a/one.jpg\n2 a/two.jpg\n",
    "CUB/images/a/one.jpg": np.random.default_rng(1).bytes(300_000),
    "CUB/images/a/two.jpg": np.random.default_rng(2).bytes(1024),
    "CUB/images/b/empty.jpg": b"",
    "CUB/images/b/" + "n" * 120 + ".jpg": b"a long name",
}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_archive(path: Path, extra: tarfile.TarInfo | None = None, mode: str = "w:gz") -> Path:
    """The files of `CONTENTS`, then a member `extra` with a few bytes if it is a file."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in CONTENTS.items():
            info = member(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if extra is not None:
            extra.size = 4 if extra.isfile() else 0
            tar.addfile(extra, io.BytesIO(b"evil"))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "outside" / "folder"
    inner.mkdir(parents=True)
    return inner


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_file_arrives(tmp_path: Path, folder: Path, mode: str, layout: int) -> None:
    archive = tmp_path / "birds.tgz"
    with tarfile.open(archive, mode, format=layout) as tar:  # type: ignore[call-overload]
        tar.addfile(member("CUB/none", tarfile.DIRTYPE))
        for name, content in CONTENTS.items():
            info = member(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    unpack(archive, folder)
    assert files_under(folder) == CONTENTS
    assert (folder / "CUB" / "none").is_dir()


# TMP stands for the folder of the test
UNSAFE = {
    "parent": (member("../evil"), "leaves the folder"),
    "parent inside": (member("CUB/../../evil"), "leaves the folder"),
    "absolute": (member("TMP/evil"), "absolute path"),
    "symlink out": (member("CUB/way_out", tarfile.SYMTYPE, "../../.."), r"is a link \(to \.\./\.\./\.\.\)"),
    "absolute symlink": (member("CUB/way_out", tarfile.SYMTYPE, "/etc"), r"is a link \(to /etc\)"),
    "hard link": (member("CUB/passwd", tarfile.LNKTYPE, "../../etc/passwd"), "is a link"),
    "character device": (member("CUB/null", tarfile.CHRTYPE), "is a device or a pipe"),
    "block device": (member("CUB/disk", tarfile.BLKTYPE), "is a device or a pipe"),
    "pipe": (member("CUB/pipe", tarfile.FIFOTYPE), "is a device or a pipe"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_member_is_named_and_writes_nothing(tmp_path: Path, folder: Path, kind: str) -> None:
    extra, problem = UNSAFE[kind]
    extra.name = extra.name.replace("TMP", str(tmp_path))
    archive = write_archive(tmp_path / "birds.tgz", extra)
    with pytest.raises(DataError, match=problem) as caught:
        unpack(archive, folder)
    message = str(caught.value)
    assert message.startswith(f"{archive}: its member {extra.name} ") and "\n" not in message
    assert files_under(folder) == CONTENTS  # what came before it, and nothing else
    assert all(path.is_file() or path.is_dir() for path in folder.rglob("*"))
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds.tgz", "outside"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_file_through_a_link_of_the_archive_is_not_written(tmp_path: Path, folder: Path) -> None:
    archive = tmp_path / "birds.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(member("door", tarfile.SYMTYPE, ".."))
        info = member("door/evil")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(DataError, match="its member door is a link"):
        unpack(archive, folder)
    assert list(folder.iterdir()) == [] and [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_archive_is_named(tmp_path: Path, folder: Path, share: float) -> None:
    archive = write_archive(tmp_path / "birds.tgz")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        DataError, match=r"birds\.tgz: truncated, or not .*; get a whole copy of it"
    ) as caught:
        unpack(archive, folder)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_tar_that_ends_between_two_members_is_truncated(tmp_path: Path, folder: Path, mode: str) -> None:
    whole = write_archive(tmp_path / "whole.tar", mode="w")
    with tarfile.open(whole) as tar:
        cut = tar.getmembers()[3].offset
    content = whole.read_bytes()[:cut]
    archive = tmp_path / "birds.tgz"
    archive.write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    with pytest.raises(DataError, match="its end is missing"):
        unpack(archive, folder)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path: Path, folder: Path) -> None:
    archive = write_archive(tmp_path / "birds.tgz")
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1  # the first byte of the checksum: all members unpack before it is read
    archive.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        unpack(archive, folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive at all" * 100, gzip.compress(b"only gzip" * 500)],
    ids=["empty", "text", "gzip of text"],
)
def test_what_is_no_archive_is_named(tmp_path: Path, folder: Path, content: bytes) -> None:
    archive = tmp_path / "birds.tgz"
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"not a tar, tar\.gz or zip archive"):
        unpack(archive, folder)


def test_a_member_that_cannot_be_written_is_named(tmp_path: Path, folder: Path) -> None:
    archive = write_archive(tmp_path / "birds.tgz", member("attributes.txt/inside"))
    with pytest.raises(DataError, match="its member attributes.txt/inside could not be written"):
        unpack(archive, folder)


@pytest.mark.parametrize("small_disk", ["200k"], indirect=True)
def test_a_disk_that_is_too_small_is_refused_at_once(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(DataError, match=r"unpacking birds\.tgz needs .* are free; free some space"):
        unpack(write_archive(tmp_path / "birds.tgz"), small_disk)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("small_disk", ["200k"], indirect=True)
def test_a_disk_that_fills_up_is_named(tmp_path: Path, small_disk: Path) -> None:
    archive, content = tmp_path / "birds.tgz", b"\0" * 1_000_000  # a small archive of a large file
    with tarfile.open(archive, "w:gz") as tar:
        info = member("CUB/large.jpg")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=r"the disk became full at CUB/large\.jpg; free some space"):
        unpack(archive, small_disk)


# Archives that are small and write much


def test_a_file_with_holes_is_named_before_its_zeros_are_written(tmp_path: Path, folder: Path) -> None:
    archive = tmp_path / "birds.tar"
    info = member("CUB/sparse.jpg", tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (8 * 2**30 - 512, 512)  # where its only bytes lie
    header[483:495] = b"%011o\0" % (8 * 2**30 - 1)  # its size with the hole
    header[124:136] = b"%011o\0" % 512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive.write_bytes(bytes(header) + b"x" * 512 + b"\0" * 10240)
    with tarfile.open(archive) as tar:
        assert tar.getmembers()[0].size == 8 * 2**30 - 1
    with pytest.raises(DataError, match=r"its member CUB/sparse\.jpg is stored as a file with holes"):
        unpack(archive, folder)
    assert files_under(folder) == {}


@pytest.mark.parametrize("sparse", ["0,x,5", "1,2,3", "-1,9999999999999"])
def test_nonsense_in_extended_headers_is_named(tmp_path: Path, folder: Path, sparse: str) -> None:
    archive = tmp_path / "birds.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = member("CUB/images.txt")
        info.pax_headers = {"GNU.sparse.map": sparse, "GNU.sparse.size": "1099511627776"}
        tar.addfile(info)
    with pytest.raises(DataError, match=r"birds\.tar: (truncated, or not a tar|its member .* with holes)"):
        unpack(archive, folder)
    assert files_under(folder) == {}


def test_headers_within_headers_are_named(tmp_path: Path, folder: Path) -> None:
    """Each long name is read within the one before it."""
    archive = tmp_path / "birds.tar"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    archive.write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"a\0" + b"\0" * 510) * 3000 + b"\0" * 1024)
    with pytest.raises(DataError, match=r"birds\.tar: truncated, or not a tar"):
        unpack(archive, folder)


def test_a_header_that_takes_all_memory_is_named(tmp_path: Path, folder: Path) -> None:
    archive = tmp_path / "birds.tgz"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        stream.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(extract.MOST_HEADER_BYTES // 2**20 + 2):
            stream.write(b"\0" * 2**20)
    with pytest.raises(DataError, match=r"more than 64\.0 MiB that are no file's"):
        unpack(archive, folder)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_of_very_many_folders_is_named(tmp_path: Path, folder: Path, kind: str) -> None:
    archive, name = tmp_path / "birds", "d/" * 1500 + "bird.jpg"
    if kind == "tar":
        archive = write_archive(archive, member(name))
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(name, "")
    with pytest.raises(DataError, match="lies more than 100 folders deep") as caught:
        unpack(archive, folder)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_writes_far_more_than_it_holds_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(extract, "SMALL_BYTES", 100_000)
    archive, zeros = tmp_path / "birds", b"\0" * 2_000_000
    if kind == "tar":
        with tarfile.open(archive, "w:gz") as tar:
            info = member("CUB/large.jpg")
            info.size = len(zeros)
            tar.addfile(info, io.BytesIO(zeros))
    else:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("CUB/large.jpg", zeros)
    with pytest.raises(
        DataError, match=r"unpacks to more than .* with member CUB/large\.jpg, which no data set"
    ):
        unpack(archive, folder)
    assert files_under(folder) == {}


# Zip archives


def write_zip(path: Path, extra: zipfile.ZipInfo | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in CONTENTS.items():
            packed.writestr(name, content)
        if extra is not None:
            packed.writestr(extra, b"../..")
    return path


def test_every_file_of_a_zip_arrives(tmp_path: Path, folder: Path) -> None:
    extra = zipfile.ZipInfo("CUB/none/")
    unpack(write_zip(tmp_path / "birds.zip", extra), folder)
    assert files_under(folder) == CONTENTS
    assert (folder / "CUB" / "none").is_dir()


@pytest.mark.parametrize(
    ("name", "mode", "problem"),
    [
        ("../evil", stat.S_IFREG, "leaves the folder"),
        ("/evil", stat.S_IFREG, "has an absolute path"),
        ("CUB/way_out", stat.S_IFLNK, "is a link or a device"),
        ("CUB/pipe", stat.S_IFIFO, "is a link or a device"),
    ],
)
def test_an_unsafe_member_of_a_zip_is_named(
    tmp_path: Path, folder: Path, name: str, mode: int, problem: str
) -> None:
    extra = zipfile.ZipInfo(name)
    extra.external_attr = (mode | 0o644) << 16
    archive = write_zip(tmp_path / "birds.zip", extra)
    with pytest.raises(DataError, match=f"its member {name} {problem}"):
        unpack(archive, folder)
    assert files_under(folder) == CONTENTS
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_zip_is_named(tmp_path: Path, folder: Path, share: float) -> None:
    content = write_zip(tmp_path / "birds.zip").read_bytes()
    (tmp_path / "birds.zip").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"birds\.zip: truncated, or not a tar, tar\.gz or zip archive"):
        unpack(tmp_path / "birds.zip", folder)


def test_a_changed_byte_of_a_zip_is_found_by_the_checksum(tmp_path: Path, folder: Path) -> None:
    archive = tmp_path / "birds.zip"
    with zipfile.ZipFile(archive, "w") as packed:  # not compressed
        packed.writestr("CUB/one.jpg", b"feathers" * 100)
    archive.write_bytes(archive.read_bytes().replace(b"feathersfeathers", b"feathersfeathert", 1))
    with pytest.raises(DataError, match=r"birds\.zip: truncated, .*Bad CRC-32 for file 'CUB/one\.jpg'"):
        unpack(archive, folder)


def test_a_member_of_a_zip_before_its_beginning_is_named(tmp_path: Path, folder: Path) -> None:
    content = bytearray(write_zip(tmp_path / "birds.zip").read_bytes())
    place = content.rindex(b"PK\x05\x06") + 16  # where the list of members is said to begin
    content[place : place + 4] = (int.from_bytes(content[place : place + 4], "little") + 1000).to_bytes(
        4, "little"
    )
    (tmp_path / "birds.zip").write_bytes(content)
    with pytest.raises(DataError, match="lies before the beginning of the archive"):
        unpack(tmp_path / "birds.zip", folder)


@pytest.mark.parametrize("how", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_is_named_whatever_its_compression(
    tmp_path: Path, folder: Path, how: int
) -> None:
    archive = tmp_path / "birds.zip"
    with zipfile.ZipFile(archive, "w", how) as packed:
        packed.writestr("CUB/one.jpg", np.random.default_rng(3).bytes(20_000))
    content = bytearray(archive.read_bytes())
    content[60:4000] = b"\xff" * 3940
    archive.write_bytes(content)
    with pytest.raises(
        DataError, match=r"birds\.zip: truncated, or not a tar, tar\.gz or zip archive \((?!None)"
    ):
        unpack(archive, folder)


def test_a_disk_that_fails_to_read_the_archive_is_not_said_to_fail_to_write(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_zip(tmp_path / "birds.zip")

    def read(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(OSError, match="Input/output error") as caught:
        unpack(archive, folder)
    assert caught.value.filename == str(archive)
