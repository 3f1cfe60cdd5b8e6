"""Text files as CUB-200-2011 has them become the sample table. `images.txt` lists the images, never a glob."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import RUN_DATA, DataError, name_some
from pipeline.data.sample_table import SOURCE_COLUMNS
from pipeline.data.sources.base import Source

_GAP = r"[ \t]+"
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_CLASS = r"[0-9]{1,15}"
Lines = Mapping[str, tuple[str, str]]
"""file: the form of its lines, for messages, and a pattern with a group for each column"""


def lines_of(image_id: str) -> Lines:
    """The files of a data set whose images have ids of this pattern."""
    ours = rf"(?P<id>{image_id})"
    return {
        "images.txt": ("id path", rf"{ours}{_GAP}(?P<path>\S.*)"),
        "image_class_labels.txt": ("id class", rf"{ours}{_GAP}(?P<class_id>{_CLASS})"),
        "classes.txt": ("class name", rf"(?P<id>{_CLASS}){_GAP}(?P<class_name>\S.*)"),
        "train_test_split.txt": ("id flag", rf"{ours}{_GAP}(?P<flag>\S+)"),
        "bounding_boxes.txt": (
            "id x y width height",
            ours + "".join(rf"{_GAP}(?P<box_{side}>{_NUMBER})" for side in "xywh"),
        ),
    }


LINES = lines_of(_CLASS)
BOXES = "bounding_boxes.txt"  # may be absent: then no image has a box
PER_IMAGE = [name for name in LINES if name != "classes.txt"]
AGAIN = f"rename it and {RUN_DATA}, which makes it anew"
WHAT_NEXT = f"mend them and run again; or, if `plumage data` made the folder, {AGAIN}"


class CubLayout(Source):
    """What all sources share whose files lie as in the archive of CUB-200-2011."""

    def find_root(self, raw: Path) -> Path:
        """The folder with images.txt: `raw`, or a folder in it."""
        return find_root(raw)

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table."""
        return read(root)

    def images(self, root: Path) -> Path:
        """The folder `images`."""
        return root / "images"

    def digest(self, root: Path) -> str:
        """The SHA-256 of the text files that `read` uses."""
        return text_digest(root)


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


def read(
    root: Path, lines: Lines = LINES, rename: Callable[[pd.DataFrame, pd.Series], pd.DataFrame] | None = None
) -> pd.DataFrame:
    """The sample table of `root`: one row a line of images.txt, columns `SOURCE_COLUMNS`.

    Paths are relative to `root`/images; boxes are in pixels of the picture as it is shown, turned by its EXIF
    orientation, and NaN where there is no bounding_boxes.txt; labels are 0 .. C-1 over the classes that have images,
    in the order of their ids. One `DataError` lists every problem of the text files at once.

    Args:
        rename: names the classes of classes.txt (id, class_name), given the ids of the images' classes; None: as they
            are.
    """
    problems: list[str] = []
    tables = {name: parse(root / name, *lines[name], problems) for name in lines}
    if rename is not None:
        used = tables["image_class_labels.txt"]["class_id"].astype("int64")
        tables["classes.txt"] = rename(tables["classes.txt"], used)
    problems += _ids(tables) + _paths(root, tables["images.txt"]) + _values(tables)
    if problems:
        raise DataError(
            "\n  ".join([f"{root}: the text files are not as they should be:", *problems, WHAT_NEXT])
        )
    return _join(tables)


def parse(path: Path, form: str, pattern: str, problems: list[str]) -> pd.DataFrame:
    """The lines of a text file as columns of text, `id` as a number if all are; bad lines go to `problems`."""
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
    return table.assign(id=table["id"].astype("int64")) if f"(?P<id>{_CLASS})" in pattern else table


def _ids(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Ids that are duplicated, or that some files have and others lack."""
    problems = []
    for name, table in tables.items():
        if duplicates := sorted(table.loc[table["id"].duplicated(), "id"].unique()):
            problems.append(f"{name}: ids {name_some(duplicates)} more than once")
    filled = [name for name in PER_IMAGE if len(tables[name])]  # parse has named the others
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
