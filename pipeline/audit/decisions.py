"""The suspects as a table to decide in: `data.corrections` reads it, and a later audit keeps what is decided."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import corrections
from pipeline.data.corrections import DECISION
from pipeline.data.sources.own_pictures import shown
from pipeline.data.text_tables import plain

DESCRIPTION = ["id", "path", "label", "suggested_label", "score"]
"""what the audit itself writes of an image"""
COLUMNS = [*DESCRIPTION, *DECISION]
Row = dict[str, Any]


def earlier(path: Path, config: DataConfig) -> pd.DataFrame:
    """What was decided or noted before: texts, with `COLUMNS` and those that a person has added; an image once.

    The first decision on an image counts; notes of rows without one stand beside it.

    Args:
        path: of the table of an earlier audit, which may be missing; it counts before `data.corrections`.

    Raises:
        DataError: one of the two is damaged, or a note has no image's id.
    """
    tables = [pd.DataFrame(columns=COLUMNS, dtype=str)]
    if path.is_file():
        corrections.read(path)  # checks its decisions
        table = corrections.read_texts(path)
        if "decision" not in table and "label" in table:  # which is the decision then
            table = table.rename(columns={"label": "decision"})
        noted = (table.drop(columns=DESCRIPTION, errors="ignore").map(plain) != "").any(axis=1)
        _check_ids(path, table[noted])
        tables.append(table[noted])
    decided = corrections.of(config)
    if decided is not None and not decided.is_cub_plus:
        tables.append(decided.rows.astype(str))
    together = pd.concat(tables, ignore_index=True).fillna("")
    together = together.assign(decision=together["decision"].map(plain))
    return _an_image_once(together.assign(id=together["id"].str.strip().astype("int64")))


def _check_ids(path: Path, noted: pd.DataFrame) -> None:
    ids = noted.reindex(columns=["id"], fill_value="")["id"]
    if odd := ids[~ids.str.strip().str.fullmatch(r"[0-9]{1,18}")].unique().tolist():
        raise DataError(
            f"{path}: notes without a whole number as the id of their image: {shown(odd)}; give each row the id of "
            "the image that it is about"
        )


def _an_image_once(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with one for each image, in the order of the first: its first decision, and notes of rows without one."""
    kept: dict[int, Row] = {image: {} for image in rows["id"].tolist()}
    records: list[Row] = [{str(name): cell for name, cell in row.items()} for row in rows.to_dict("records")]
    for row in sorted(records, key=_only_notes):  # those with a decision first
        before = kept[row["id"]]
        if not before:
            kept[row["id"]] = row
        elif _only_notes(row):
            kept[row["id"]] = {name: _joined(name, before[name], row[name]) for name in row}
    return pd.DataFrame([*kept.values()], columns=rows.columns).astype({"id": "int64"})


def _only_notes(row: Row) -> bool:
    return bool(row["decision"] == "")


def _joined(name: str, own: Any, other: Any) -> Any:
    """The cell of one row: what the audit writes of an image once, what a person writes side by side."""
    return (own or other) if name in DESCRIPTION else "; ".join(dict.fromkeys(filter(None, (own, other))))


def to_decide(errors: pd.DataFrame, samples: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """The suspects, most doubtful first, with an empty decision or that of before; then all others decided before.

    Args:
        errors: as `label_errors.likely_errors` returns them.
        samples: rows of the sample table.
        before: as `earlier` returns it.
    """
    suspects = errors[["id", "path", "class_name", "suggested_name", "score"]].set_axis(DESCRIPTION, axis=1)
    suspects = suspects.astype({"score": object})
    added = before.drop(columns=DESCRIPTION[1:])
    listed = suspects.merge(added, on="id", how="left").fillna("")
    others, known = before[~before["id"].isin(suspects["id"])], samples.set_index("id")
    path = others["path"].where(others["path"] != "", others["id"].map(known["path"]).fillna(""))
    label = others["label"].where(others["label"] != "", others["id"].map(known["class_name"]).fillna(""))
    others = others.assign(path=path, label=label)
    return pd.concat([listed, others], ignore_index=True)
