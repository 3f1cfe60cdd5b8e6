"""Archives in CUB's layout: damaged, hostile, or merely unusual."""

import hashlib
import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from harness import Case, Outcome, call, damaged, judge
from world import World

from pipeline.data.pictures import Layout, picture

Members = dict[str, bytes]


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    members = {
        f"CUB_200_2011/{path.relative_to(world.raw / 'CUB_200_2011').as_posix()}": path.read_bytes()
        for path in sorted(world.raw.joinpath("CUB_200_2011").rglob("*"))
        if path.is_file()
    }
    makers = [_packed, _damaged, _hostile_member, _changed_header]
    while True:
        yield draw.choice(makers)(world, members, draw)


def tar_of(
    members: Members, mode: str = "w:gz", extra: Callable[[tarfile.TarFile], None] = lambda _: None
) -> bytes:
    """An archive with these files, and what `extra` adds behind them."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode=mode, **({"compresslevel": 1} if mode == "w:gz" else {})
    ) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        extra(archive)
    return stream.getvalue()


def zip_of(members: Members) -> bytes:
    """A zip archive with these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def check_data(folder: Path) -> str | None:
    """What is wrong with the data that a call has prepared from a folder in CUB's layout."""
    (table,) = (folder / "data").glob("*/samples*.csv")
    roots = [path.parent / "images" for path in folder.rglob("images.txt")]
    return check_store(folder, pd.read_csv(table), roots)


def check_store(folder: Path, samples: pd.DataFrame, roots: list[Path]) -> str | None:
    """What is wrong with the store that a call has made: each stored picture against its file below one of the roots."""
    (store,) = (folder / "data").glob("*/store-*-packed")
    layout = Layout("squash" if "squash" in store.name else "short_side", 40, "packed")
    index = pd.read_csv(store / "index.csv").set_index("id")
    pixels = np.fromfile(store / "pixels.bin", np.uint8)
    if samples["id"].duplicated().any() or set(samples["id"]) - set(index.index):
        return "ids of table and store do not agree"
    for row in samples.itertuples():
        entry = index.loc[row.id]
        stored = pixels[entry.offset : entry.offset + entry.length].reshape(
            entry.store_height, entry.store_width, 3
        )
        files = [root / row.path for root in roots]
        true = next((picture(file, layout) for file in files if file.is_file()), None)
        if true is None or not np.array_equal(true, stored):
            return f"the store holds other pixels than {row.path}"
    return None


def data_case(what: str, name: str, content: bytes, world: World, words: tuple[str, ...] = ()) -> Case:
    """`data` from an archive; nothing may be written outside its folder."""

    def body(folder: Path) -> str:
        (folder / "canary").write_text("unharmed")
        (folder / "in").mkdir()
        (folder / "in" / name).write_bytes(content)
        digest = hashlib.md5(content).hexdigest()
        overrides = [word for word in world.overrides(folder) if not word.startswith("data.s")]
        words_ = [*overrides, f"data.archive={folder / 'in' / name}", f"data.archive_md5='{digest}'", *words]
        outcome = call(folder, "data", *words_)
        return judge(outcome, lambda outcome: _right(folder, outcome))

    return Case(what, body)


def _right(folder: Path, outcome: Outcome) -> str | None:  # noqa: ARG001
    outside = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {
        "canary",
        "in",
        "data",
        "runs",
    }
    if outside or (folder / "canary").read_text() != "unharmed" or len(list((folder / "in").iterdir())) != 1:
        return f"wrote outside the data folder: {sorted(outside)}"
    return check_data(folder)


def _packed(world: World, members: Members, draw: random.Random) -> Case:
    """Whole archives of other kinds, layouts and names."""
    inner = {name.removeprefix("CUB_200_2011/"): content for name, content in members.items()}
    backslashes = {name.replace("/", "\\"): content for name, content in members.items()}
    layouts = {"as CUB": members, "without a top folder": inner, "backslashes": backslashes,
        "two folders down": {f"a/b/{name}": content for name, content in members.items()},
        "with ./": {f"./{name}": content for name, content in members.items()},
        "with stray files": {**members, "CUB_200_2011/images/._x.jpg": b"x", "__MACOSX/y": b"y"}}  # fmt: skip
    layout = draw.choice(sorted(layouts))
    kinds: dict[str, Callable[[Members], bytes]] = {
        "tgz": tar_of, "tar": lambda m: tar_of(m, "w"), "tar.bz2": lambda m: tar_of(m, "w:bz2"),
        "tar.xz": lambda m: tar_of(m, "w:xz"), "zip": zip_of,
    }  # fmt: skip
    kind, suffix = draw.choice(sorted(kinds)), draw.choice(["tgz", "zip", "TGZ", "bin"])
    return data_case(f"{kind}, {layout}, named .{suffix}", f"a.{suffix}", kinds[kind](layouts[layout]), world)


def _damaged(world: World, members: Members, draw: random.Random) -> Case:
    kind = draw.choice(["tgz", "zip", "tar"])
    content = {"tgz": tar_of, "zip": zip_of, "tar": lambda m: tar_of(m, "w")}[kind](members)
    way, content = damaged(content, draw)
    return data_case(f"{kind}, {way}", f"a.{kind}", content, world)


def _hostile_member(world: World, members: Members, draw: random.Random) -> Case:
    """A member that leads out of the folder, is no file, or is larger than it says."""

    def link(kind: bytes, target: str, name: str = "CUB_200_2011/x") -> Callable[[tarfile.TarFile], None]:
        def add(archive: tarfile.TarFile) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
            through = tarfile.TarInfo(f"{name}/canary")
            through.size = 3
            archive.addfile(through, io.BytesIO(b"hit"))

        return add

    def plain(name: str, **fields: object) -> Callable[[tarfile.TarFile], None]:
        def add(archive: tarfile.TarFile) -> None:
            info = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(info, field, value)
            if info.type == tarfile.REGTYPE and not info.size:
                info.size = 3
            archive.addfile(info, io.BytesIO(b"hit"))

        return add

    extras = {
        "a link to /": link(tarfile.SYMTYPE, "/"),
        "a link up": link(tarfile.SYMTYPE, "../../.."),
        "a hard link out": link(tarfile.LNKTYPE, "../../../canary"),
        "a link to itself": link(tarfile.SYMTYPE, "x"),
        "a pipe": plain("CUB_200_2011/images/p.jpg", type=tarfile.FIFOTYPE),
        "a device": plain("CUB_200_2011/images/p.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        "a path up": plain("../../canary"),
        "a path up inside": plain("CUB_200_2011/../../../canary"),
        "an absolute path": plain(f"{Path('/').joinpath('plumage-fuzz-canary')}"),
        "a name of 300 bytes": plain("CUB_200_2011/" + "a" * 300),
        "1,500 folders deep": plain("CUB_200_2011/" + "a/" * 1500 + "x"),
        "the same name twice": plain("CUB_200_2011/images.txt"),
        "a file where a folder is": plain("CUB_200_2011/images"),
        "no permissions": plain("CUB_200_2011/images/no.jpg", mode=0),
        "a negative time": plain("CUB_200_2011/x", mtime=-1),
        "a huge owner": plain("CUB_200_2011/x", uid=2**31, gid=2**31),
        "a pax map of a sparse file": plain("CUB_200_2011/x", pax_headers={"GNU.sparse.map": "nonsense"}),
        "a pax size": plain("CUB_200_2011/x", pax_headers={"size": "99999999999999"}),
        "a sparse file of 8 TiB": plain(
            "CUB_200_2011/x",
            pax_headers={"GNU.sparse.major": "0", "GNU.sparse.map": "0,3", "GNU.sparse.size": str(8 << 40)},
        ),
        "a name with a newline": plain("CUB_200_2011/a\nb"),
        "a name that is no text": plain("CUB_200_2011/\udcff\udcfe"),
    }  # fmt: skip
    what = draw.choice(sorted(extras))
    return data_case(what, "a.tgz", tar_of(members, extra=extras[what]), world)


def _changed_header(world: World, members: Members, draw: random.Random) -> Case:
    """A header of the tar file with a changed field and a right checksum."""
    content = bytearray(tar_of(members, "w"))
    start = 512 * draw.randrange(4)
    position = start + draw.randrange(512)
    content[position] = draw.choice(b"\x00\xff 0789SLKxg")
    header = content[start : start + 512]
    header[148:156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return data_case(f"tar, byte {position} of its headers changed", "a.tar", bytes(content), world)
