"""CUB-200-2011: its text files become the sample table. `images.txt` lists the images, never a glob."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError, name_some
from pipeline.config.data import DataConfig
from pipeline.data.sample_table import SOURCE_COLUMNS
from pipeline.data.sources import download, extract, given_folder
from pipeline.data.sources.download import Remote

ARCHIVE = Remote(
    urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
    size_bytes=1_150_585_339,
    md5="97eceeb196236b17998738112f37df78",
    sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
)
CLASSES = 200
IMAGES = {"train": 5_994, "test": 5_794}
IMAGES_A_CLASS = {"train": (29, 30), "test": (11, 30)}  # fewest and most
UNPACKED = 1.05  # bytes of the unpacked JPEGs over those of their archive

_ID = r"(?P<id>[0-9]{1,15})"
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_GAP = r"[ \t]+"
# file: the form of its lines, for messages, and a pattern with a group for each column
LINES = {
    "images.txt": ("id path", rf"{_ID}{_GAP}(?P<path>\S.*)"),
    "image_class_labels.txt": ("id class", rf"{_ID}{_GAP}(?P<class_id>[0-9]{{1,15}})"),
    "classes.txt": ("class name", rf"{_ID}{_GAP}(?P<class_name>\S.*)"),
    "train_test_split.txt": ("id flag", rf"{_ID}{_GAP}(?P<flag>\S+)"),
    "bounding_boxes.txt": (
        "id x y width height",
        _ID + "".join(rf"{_GAP}(?P<box_{side}>{_NUMBER})" for side in "xywh"),
    ),
}
BOXES = "bounding_boxes.txt"  # may be absent: then no image has a box
PER_IMAGE = [name for name in LINES if name != "classes.txt"]
AGAIN = "rename it and run `make data`, which makes it anew"
WHAT_NEXT = f"mend them and run again; or, if `make data` made the folder, {AGAIN}"


@dataclass(frozen=True)
class CubLayout:
    """What all sources share whose files lie as in the archive of CUB-200-2011."""

    config: DataConfig

    def find_root(self, raw: Path) -> Path:
        """The folder with images.txt: `raw`, or a folder in it."""
        return find_root(raw)

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table."""
        return read(root)

    def images(self, root: Path) -> Path:
        """The folder `images`."""
        return root / "images"

    def remarks(self, root: Path) -> list[str]:  # noqa: ARG002  # the protocol's
        """None."""
        return []

    def digest(self, root: Path) -> str:
        """The SHA-256 of the text files that `read` uses."""
        return text_digest(root)


@dataclass(frozen=True)
class Cub200(CubLayout):
    """The published archive, another one of the same layout, or a folder where one was unpacked."""

    verb = "unpack"
    expected = CLASSES, IMAGES["train"], IMAGES["test"]

    @property
    def folder_name(self) -> str:
        """`cub200`, with a digest where it is not the published archive; of a folder, see `given_folder`."""
        if self._unpacked is not None:
            return self._prepared or given_folder.first_name(self.config.root, "cub200", self._unpacked)
        return "cub200" if is_official(self.config) else f"cub200-{_md5(self.config)[:8]}"

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """The archive's digest; None: the archive is already unpacked."""
        return {"md5": _md5(self.config)} if self._unpacked is None else None

    def fetch(self, output: Path) -> None:
        """Unpack the archive, after downloading it where none is given."""
        archive = self.config.archive
        if archive is None:
            archive = self.config.root / "downloads" / "CUB_200_2011.tgz"
            download.fetch(ARCHIVE, archive)
        else:
            size_bytes = ARCHIVE.size_bytes if is_official(self.config) else None
            download.verify_archive(archive, _md5(self.config), size_bytes)
        extract.unpack(archive, output)

    def find_root(self, raw: Path) -> Path:
        """The folder with images.txt, in the given folder or in `raw`."""
        return find_root(self._unpacked or raw)

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table; of the published archive, with the published numbers of images."""
        table = read(root)
        if is_official(self.config):
            check_official(table, root)
        return table

    def bytes_to_fetch(self) -> int:
        """The archive, as far as it is not downloaded, and the unpacked pictures."""
        archive = self.config.archive
        if archive is not None:
            return round(UNPACKED * archive.stat().st_size) if archive.is_file() else 0
        downloads = (self.config.root / "downloads").glob("CUB_200_2011.tgz*")
        downloaded = sum(path.stat().st_size for path in downloads)
        return round((1 + UNPACKED) * ARCHIVE.size_bytes) - min(downloaded, ARCHIVE.size_bytes)

    def remember(self, prepared: Path) -> None:
        """Record the given folder."""
        if self._unpacked is not None:
            given_folder.remember(prepared, self._unpacked, self._content())

    @property
    def _unpacked(self) -> Path | None:
        """The folder that `data.archive` names, or named when data were prepared from it."""
        archive = self.config.archive
        if archive is None or archive.is_file():
            return None
        return archive if archive.is_dir() or self._prepared is not None else None

    @property
    def _prepared(self) -> str | None:
        """The name of the data that were prepared from the given folder."""
        archive = self.config.archive
        assert archive is not None
        return given_folder.find(self.config.root, "cub200", archive, self._content)

    def _content(self) -> str:
        assert self.config.archive is not None
        return text_digest(find_root(self.config.archive))


def is_official(config: DataConfig) -> bool:
    """Whether the data are the published archive of CUB-200-2011, by its digest; a folder has none."""
    is_folder = config.archive is not None and config.archive.is_dir()
    return config.source == "cub200" and not is_folder and _md5(config) == ARCHIVE.md5


def _md5(config: DataConfig) -> str:
    return config.archive_md5 or ARCHIVE.md5


def find_root(folder: Path) -> Path:
    """The folder that holds images.txt: `folder`, `folder`/CUB_200_2011, or another folder in it."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for candidate in (folder, folder / "CUB_200_2011", *inside):
        if (candidate / "images.txt").is_file():
            return candidate
    raise DataError(
        f"{folder}: neither it nor a folder in it holds images.txt, the list of its images in lines `id path`; check "
        f"data.archive, write {', '.join(name for name in LINES if name != BOXES)} as CUB-200-2011 has them, or, where "
        "each class has a folder of its own, set data.source=folder and data.path instead"
    )


def text_digest(root: Path) -> str:
    """The SHA-256 of the text files that `read` uses: 64 hexadecimal digits."""
    there = [name for name in LINES if (root / name).is_file()]
    if missing := [name for name in LINES if name not in there and name != BOXES]:
        raise DataError(f"{root}: {name_some(missing)} missing; write them in lines as CUB-200-2011 has them")
    return files.digest_of({name: files.digest_of_file(root / name) for name in there})


def read(root: Path) -> pd.DataFrame:
    """The sample table of `root`: one row a line of images.txt, columns `SOURCE_COLUMNS`.

    Paths are relative to `root`/images; boxes are in pixels of the picture as it is shown, turned by its EXIF
    orientation, and NaN where there is no bounding_boxes.txt; labels are 0 .. C-1 over the classes that have images,
    in the order of their ids. One `DataError` lists every problem of the text files at once.
    """
    problems: list[str] = []
    tables = {name: _parse(root / name, problems) for name in LINES}
    problems += _ids(tables) + _paths(root, tables["images.txt"]) + _values(tables)
    if problems:
        raise DataError(
            "\n  ".join([f"{root}: the text files are not as they should be:", *problems, WHAT_NEXT])
        )
    return _join(tables)


def check_official(table: pd.DataFrame, where: Path) -> None:
    """Raise a `DataError` unless the numbers of classes and images are those of the official data set."""
    problems = []
    if (classes := table["label"].nunique()) != CLASSES:
        problems.append(f"{classes} classes where {CLASSES} are expected")
    for split, expected in IMAGES.items():
        rows = table[table["official"] == split]
        if len(rows) != expected:
            problems.append(f"{len(rows):,} {split} images where {expected:,} are expected")
        fewest, most = IMAGES_A_CLASS[split]
        counts = rows["class_name"].value_counts()
        counts = counts.reindex(table["class_name"].unique(), fill_value=0)
        odd = sorted(counts.index[~counts.between(fewest, most)])
        if odd:
            problems.append(f"{name_some(odd)} without {fewest} to {most} {split} images")
    if boxless := table.loc[table["box_x"].isna(), "id"].tolist():
        problems.append(f"no box for image ids {name_some(boxless)}")
    if problems:
        raise DataError(
            f"{where}: not as it was unpacked from the official CUB-200-2011: {'; '.join(problems)}; {AGAIN}"
        )


def _parse(path: Path, problems: list[str]) -> pd.DataFrame:
    """The lines of a text file as columns of text, `id` as a number; bad lines go to `problems`."""
    form, pattern = LINES[path.name]
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if path.name != BOXES:
            problems.append(f"{path.name}: missing")
    except IsADirectoryError:
        problems.append(f"{path.name}: a folder, and not a text")
    except UnicodeDecodeError as error:
        problems.append(f"{path.name}: not a text in UTF-8 (byte {error.start})")
    else:
        if not text.strip():
            problems.append(f"{path.name}: empty")
    lines = pd.Series(text.split("\n")).str.strip()
    lines = lines[lines != ""]
    table = lines.str.extract(rf"^{pattern}$")
    bad = table["id"].isna()
    if bad.any():
        bad_lines = [f"line {number + 1} ({lines[number][:40]})" for number in table.index[bad]]
        problems.append(f"{path.name}: {name_some(bad_lines)} not of the form `{form}`")
    table = table[~bad]
    return table.assign(id=table["id"].astype("int64"))


def _ids(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Ids that are duplicated, or that some files have and others lack."""
    problems = []
    for name, table in tables.items():
        if duplicates := sorted(table.loc[table["id"].duplicated(), "id"].unique()):
            problems.append(f"{name}: ids {name_some(duplicates)} more than once")
    filled = [name for name in PER_IMAGE if len(tables[name])]  # _parse has named the others
    everywhere = set().union(*(tables[name]["id"] for name in filled))
    for name in filled:
        if missing := sorted(everywhere.difference(tables[name]["id"])):
            problems.append(f"{name}: no row for image ids {name_some(missing)}")
    return problems


def _paths(root: Path, images: pd.DataFrame) -> list[str]:
    """Paths that are duplicated, leave the folder of images, or lead to no picture."""
    outside: list[str] = []
    absent: list[str] = []
    backslashes: list[str] = []
    for path in images["path"]:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            outside.append(path)
        elif not _is_file(root / "images" / pure):
            (backslashes if "\\" in path else absent).append(path)
    duplicates = images.loc[images["path"].duplicated(), "path"].unique().tolist()
    kinds = {
        "more than once": duplicates,
        "outside the folder images": outside,
        "not in the folder images": absent,
        "with \\ between folders, where / is expected": backslashes,
    }
    return [f"images.txt: {name_some(paths)} {kind}" for kind, paths in kinds.items() if paths]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # there can be no such file
            raise
        return False


def _values(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Classes without a name, names without a class of their own, flags and boxes that mean nothing."""
    problems = []
    labels, classes = tables["image_class_labels.txt"], tables["classes.txt"]
    unknown = sorted(set(labels["class_id"].astype("int64")).difference(classes["id"]))
    if unknown and len(classes):
        problems.append(f"image_class_labels.txt: class ids {name_some(unknown)} not in classes.txt")
    if duplicates := classes.loc[classes["class_name"].duplicated(), "class_name"].unique().tolist():
        problems.append(f"classes.txt: {name_some(duplicates)} more than once")
    split = tables["train_test_split.txt"]
    if odd := split.loc[~split["flag"].isin(["0", "1"]), "id"].tolist():
        problems.append(f"train_test_split.txt: a flag other than 0 and 1 for image ids {name_some(odd)}")
    boxes = tables["bounding_boxes.txt"]
    flat = (boxes[["box_w", "box_h"]].astype("float64") <= 0).any(axis=1)
    if empty := boxes.loc[flat, "id"].tolist():
        problems.append(f"bounding_boxes.txt: an empty box for image ids {name_some(empty)}")
    return problems


def _join(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The tables, free of problems, as one sample table in the order of images.txt."""
    table = tables["images.txt"]
    for name in PER_IMAGE[1:]:
        table = table.merge(tables[name], on="id", how="left", validate="one_to_one")
    table["class_id"] = table["class_id"].astype("int64")
    names = tables["classes.txt"].set_index("id")["class_name"]
    labels = {class_id: label for label, class_id in enumerate(sorted(table["class_id"].unique()))}
    table["label"] = table["class_id"].map(labels).astype("int64")
    table["class_name"] = table["class_id"].map(names)
    table["official"] = table["flag"].map({"1": "train", "0": "test"})
    boxes = [name for name in SOURCE_COLUMNS if name.startswith("box_")]
    table[boxes] = table[boxes].astype("float64")
    return table[SOURCE_COLUMNS]
