"""The suspects as a table to decide in: `data.corrections` reads it, and a later audit keeps what is decided."""

from pathlib import Path

import pandas as pd

from pipeline.config.data import DataConfig
from pipeline.data import corrections
from pipeline.data.corrections import DECISION

COLUMNS = ["id", "path", "label", "suggested_label", "score", *DECISION]


def earlier(path: Path, config: DataConfig) -> pd.DataFrame:
    """What was decided or noted before: texts, with `COLUMNS` and those that a person has added; an image once.

    Args:
        path: of the table of an earlier audit, which may be missing; it counts before `data.corrections`.

    Raises:
        DataError: one of the two is damaged.
    """
    tables = [pd.DataFrame(columns=COLUMNS, dtype=str)]
    if path.is_file():
        corrections.read(path)  # checks it
        table = corrections.read_texts(path)
        noted = (table.drop(columns=COLUMNS[:5], errors="ignore") != "").any(axis=1)
        tables.append(table[noted])
    decided = corrections.of(config)
    if decided is not None and not decided.is_cub_plus:
        tables.append(decided.rows.astype(str))
    together = pd.concat(tables, ignore_index=True).fillna("")
    return together.assign(id=together["id"].str.strip().astype("int64")).drop_duplicates("id")


def to_decide(errors: pd.DataFrame, samples: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """The suspects, most doubtful first, with an empty decision or that of before; then all others decided before.

    Args:
        errors: as `label_errors.likely_errors` returns them.
        samples: rows of the sample table.
        before: as `earlier` returns it.
    """
    suspects = errors[["id", "path", "class_name", "suggested_name", "score"]].set_axis(COLUMNS[:5], axis=1)
    suspects = suspects.astype({"score": object})
    added = before.drop(columns=COLUMNS[1:5])
    listed = suspects.merge(added, on="id", how="left").fillna("")
    others, known = before[~before["id"].isin(suspects["id"])], samples.set_index("id")
    path = others["path"].where(others["path"] != "", others["id"].map(known["path"]).fillna(""))
    label = others["label"].where(others["label"] != "", others["id"].map(known["class_name"]).fillna(""))
    others = others.assign(path=path, label=label)
    return pd.concat([listed, others], ignore_index=True)
