"""Corrections of labels by hand: a file of decisions makes another sample table, beside the untouched one.

Read are the audit's `corrections.csv` with its column `decision` filled in, a table with the columns id and label, and
the file of CUB++ (github.com/catalys1/fgvc-data-pytorch): a line an image of CUB-200-2011, with its id and its class
counted from 1; images that are not in it were dropped.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.common import files, tables
from pipeline.common.errors import DataError, name_some
from pipeline.config.data import DataConfig
from pipeline.data import text_tables
from pipeline.data.sources.own_pictures import shown
from pipeline.data.text_tables import plain

DROP = "drop"
NOTES = ["who", "when", "why"]
DECISION = ["decision", *NOTES]
LISTED = ["id", "path", "split", "class_name", *DECISION]
"""columns of the list of what was corrected; class_name: before"""
CUB_PLUS = re.compile(r"(\d{1,9})[ \t]+(\d{1,9})")
CUB_CLASS = re.compile(r"(\d+)\.")
WHAT_TO_GIVE = "set data.corrections to the table of your decisions"
WHAT_NEXT = "give the columns id and label (or decision), with a class or `drop` in the second"


@dataclass(frozen=True)
class Corrections:
    """The decisions of one file."""

    path: Path
    rows: pd.DataFrame
    """id: int64; path ("" where the file has none), decision, who, when, why: texts; only rows with a decision"""
    is_cub_plus: bool
    """decisions are classes of CUB-200-2011 counted from 1, and images without one are dropped"""

    @property
    def digest(self) -> str:
        """A digest of what is decided, by whomever and in whatever order."""
        return files.digest_of(
            [self.is_cub_plus, self.rows[["id", "decision"]].sort_values("id").to_csv(index=False)]
        )


def of(config: DataConfig) -> Corrections | None:
    """The decisions of `data.corrections`; None: nothing is decided, and the table is the untouched one.

    Raises:
        DataError: see `read`.
    """
    decided = None if config.corrections is None else read(config.corrections)
    return decided if decided is not None and len(decided.rows) else None


def sentence(config: DataConfig, listed: Path) -> str:
    """How many images of a sample table were relabelled and dropped.

    Args:
        listed: the list of them.
    """
    file = config.corrections
    if of(config) is None:
        return f"corrections  {file} decides nothing; the labels are those of the data set"
    if not listed.is_file():
        return f"corrections  labels are as {file} decides; the list of what was changed, {listed}, is gone"
    decisions = tables.read_csv(listed, {"decision": str})["decision"]
    dropped = int((decisions == DROP).sum())
    return f"corrections  {len(decisions) - dropped:,} relabelled, {dropped:,} dropped by {file}, listed in {listed}"


def read(path: Path) -> Corrections:
    """The decisions of a file; rows without one are left out.

    Raises:
        DataError: there is no such file, it is no such table, or it decides twice about an image.
    """
    text = text_tables.read_text(path, WHAT_TO_GIVE)
    lines = text.split("\n")
    is_cub_plus = CUB_PLUS.fullmatch(lines[0].strip()) is not None
    if is_cub_plus:
        cells = [line.split() for line in lines if line.strip()]
        if odd := [line for line in lines if line.strip() and not CUB_PLUS.fullmatch(line.strip())]:
            raise DataError(f"{path}: lines that are no id and class: {shown(odd)}; mend them")
        table = pd.DataFrame(cells, columns=["id", "decision"], dtype=str)
    else:
        table = read_texts(path)
        decision = next((name for name in ("decision", "label") if name in table), None)
        if "id" not in table or decision is None:
            raise DataError(f"{path}: has the columns {shown(list(table.columns))}; {WHAT_NEXT}")
        table = table.assign(decision=table[decision])
    rows = table.reindex(columns=["id", "path", *DECISION], fill_value="")
    rows = rows.assign(decision=rows["decision"].map(plain))[rows["decision"].map(plain) != ""]
    if odd := rows.loc[~rows["id"].str.strip().str.fullmatch(r"\d{1,18}"), "id"].tolist():
        raise DataError(f"{path}: ids that are no whole numbers: {shown(odd)}; {WHAT_NEXT}")
    rows = rows.assign(id=rows["id"].astype("int64")).reset_index(drop=True)
    if doubled := rows.loc[rows["id"].duplicated(), "id"].unique().tolist():
        raise DataError(
            f"{path}: more than one decision for image ids {name_some(doubled)}; keep one of each"
        )
    return Corrections(path, rows, is_cub_plus)


def read_texts(path: Path) -> pd.DataFrame:
    """A table of decisions as it stands there, see `text_tables.read_texts`."""
    return text_tables.read_texts(path, WHAT_TO_GIVE, WHAT_NEXT, ("id", "decision", "label"))


def changes(corrections: Corrections, images: pd.DataFrame, source: str) -> pd.DataFrame:
    """What the corrections change of a data set: columns id, `DECISION`; the decision is another class, or `drop`.

    Args:
        images: all images of the source, before any is left out.
        source: `data.source`.

    Raises:
        DataError: the decisions do not fit the images, or a class would lose all its pictures.
    """
    if corrections.is_cub_plus:
        rows = _of_cub_plus(corrections, images, source)
    else:
        _check(corrections, images)
        rows = corrections.rows
    rows = rows[["id", *DECISION]]
    now = images.set_index("id")["class_name"].loc[rows["id"]]
    exact = {plain(name): name for name in images["class_name"].unique()}
    rows = rows.assign(decision=rows["decision"].map({**exact, DROP: DROP}))
    changing = rows[(rows["decision"] != now.to_numpy())].reset_index(drop=True)
    apply(images.assign(split=""), changing, corrections.path)
    return changing


def _check(corrections: Corrections, images: pd.DataFrame) -> None:
    path, rows = corrections.path, corrections.rows
    if unknown := sorted(set(rows["id"]).difference(images["id"])):
        raise DataError(
            f"{path}: image ids {name_some(unknown)} are not in the data set; mend or drop these rows"
        )
    paths = images.set_index("id")["path"].loc[rows["id"]].to_numpy()
    if moved := rows.loc[(rows["path"] != "") & (rows["path"] != paths), "path"].tolist():
        raise DataError(
            f"{path}: {shown(moved)} have other ids in the data set now; take the ids of the table of today"
        )
    names = set(map(plain, images["class_name"].unique()))
    if unknown_names := sorted(set(rows["decision"]).difference({*names, DROP})):
        raise DataError(
            f"{path}: {shown(unknown_names)}: no such class; give the name of a class of the data set, or `drop`"
        )
    if DROP in names and DROP in set(rows["decision"]):
        raise DataError(f"{path}: `drop` may mean the class of that name; give the class another name")


def _of_cub_plus(corrections: Corrections, images: pd.DataFrame, source: str) -> pd.DataFrame:
    """The decisions of CUB++ on images of CUB-200-2011; an image whose class the data set lacks is dropped."""
    numbers = {
        int(found[1]): name for name in images["class_name"].unique() if (found := CUB_CLASS.match(name))
    }
    if source != "cub200" or len(numbers) < images["class_name"].nunique():
        raise DataError(
            f"{corrections.path}: has the numbers of images of CUB-200-2011, and these are others; {WHAT_NEXT}"
        )
    cleaned = dict(zip(corrections.rows["id"], map(int, corrections.rows["decision"]), strict=True))
    rows = []
    for image in images["id"].tolist():
        number = cleaned.get(image)
        name = DROP if number is None else numbers.get(number, DROP)
        why = "CUB++: not in it" if number is None else f"CUB++: class {number}"
        rows.append([image, plain(name), "", "", why])
    return pd.DataFrame(rows, columns=["id", *DECISION])


def apply(samples: pd.DataFrame, changing: pd.DataFrame, where: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A sample table with other labels and without the dropped images, and the list of what was changed (`LISTED`).

    Splits stay as they are.

    Args:
        changing: as `changes` returns it.
        where: for the error.

    Raises:
        DataError: a class loses all its pictures.
    """
    decision = samples["id"].map(changing.set_index("id")["decision"])
    listed = samples.merge(changing, on="id", validate="one_to_one")[LISTED]
    label = samples.drop_duplicates("class_name").set_index("class_name")["label"]
    kept = decision != DROP
    relabelled = samples.assign(class_name=decision.where(decision.notna() & kept, samples["class_name"]))[
        kept
    ]
    if gone := sorted(set(samples["class_name"]).difference(relabelled["class_name"])):
        raise DataError(
            f"{where}: leaves no picture of {name_some(gone)}; keep some, or leave the class out of the data set"
        )
    known = relabelled["class_name"].map(label)
    return relabelled.assign(label=known.astype("int64")).reset_index(drop=True), listed
