"""What `predict` says of each picture, and the files that it is written to as it comes."""

import csv
import importlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.common import console, files
from pipeline.common.errors import DataError

Format = Literal["json", "csv", "parquet"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv",),
    "parquet": (".parquet",),
}
BEGINNINGS: dict[Format, bytes] = {"json": b'{"image": ', "csv": b"image,", "parquet": b"PAR1"}
TO_STDOUT = Path("-")
ROWS_AT_ONCE = 1024  # of a Parquet file


Cell = bool | float | str | list[str] | None


@dataclass(frozen=True)
class Judgement:
    """How far an answer can be trusted: in words, and as columns."""

    words: str
    cells: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What is said of one picture: its most likely classes with their probabilities, or why it cannot be read.

    classes: or nodes of a hierarchy. logits: float32 [C]; features: float32 [D]; None where they are not asked for.
    judgement: None where nothing is known of it.
    """

    image: Path
    classes: tuple[tuple[str, float], ...] = ()
    logits: npt.NDArray[np.float32] | None = None
    features: npt.NDArray[np.float32] | None = None
    error: str | None = None
    judgement: Judgement | None = None

    def as_object(self) -> dict[str, Any]:
        """In plain types: image; classes, the cells of the judgement, logits and features, or error."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        classes = [{"class": name, "probability": probability} for name, probability in self.classes]
        return {"image": str(self.image), "classes": classes, **self.cells(), **self.numbers()}

    def cells(self) -> dict[str, Cell]:
        """The columns of the judgement."""
        return {} if self.judgement is None else dict(self.judgement.cells)

    def numbers(self) -> dict[str, list[float]]:
        """The logits and the features that were asked for."""
        named = {"logits": self.logits, "features": self.features}
        return {name: values.tolist() for name, values in named.items() if values is not None}


Write = Callable[[Answer], None]


@dataclass(frozen=True)
class AnswerFile:
    """A file of answers, a row a picture; the path `-` is standard output, for JSON lines and CSV."""

    format: Format
    path: Path

    def check(self) -> None:
        """Raise a `DataError` where it cannot be written: before a long prediction."""
        option = f"--{self.format} {self.path}"
        suffixes = SUFFIXES[self.format]
        if self.path == TO_STDOUT:
            if self.format == "parquet":
                raise DataError(f"{option}: Parquet is written to a file; name one that ends in .parquet")
        elif self.path.suffix.lower() not in suffixes:  # the option may have taken a picture for its file
            raise DataError(
                f"{option}: would be written over; name a file that ends in {' or '.join(suffixes)}"
                + (", or - for standard output" if self.format != "parquet" else "")
            )
        if self.path.is_dir():
            raise DataError(f"{option}: a folder; name a file")
        if self.path.is_file() and not self._holds_answers():
            raise DataError(f"{option}: exists, and holds no answers of `predict`; name another file")
        if self.format == "parquet":
            _pyarrow(option)

    def _holds_answers(self) -> bool:
        """Whether an existing file begins as one that `predict` has written; an empty one may be replaced, too."""
        with self.path.open("rb") as stream:
            begins = stream.read(len(BEGINNINGS[self.format]))
        return begins in (b"", BEGINNINGS[self.format])

    @contextmanager
    def writing(
        self, names: Sequence[str], top: int, logits: bool, features: bool, judged: Mapping[str, type]
    ) -> Iterator[Write]:
        """Yield what writes an answer. The file appears when the block ends without an error.

        Args:
            names: of all classes.
            top: number of classes in a row.
            logits, features: whether there are such columns.
            judged: the columns of a judgement, with the type of their cells.
        """
        named = {"class": str, "probability": float}
        columns = {f"{column}_{place}": named[column] for place in range(1, top + 1) for column in named}
        columns |= judged
        arrays = ["logits"] * logits + ["features"] * features
        if self.path == TO_STDOUT:
            yield _lines(self.format, console.put_out, ["image", *columns, *arrays, "error"])
            return
        with files.replacing(self.path) as part:
            if self.format == "parquet":
                with _parquet(part, names, columns, arrays) as write:
                    yield write
                return
            with part.open("w", encoding="utf-8", newline="") as stream:
                yield _lines(
                    self.format, lambda line: print(line, file=stream), ["image", *columns, *arrays, "error"]
                )


def _lines(format_: Format, put: Callable[[str], None], columns: Sequence[str]) -> Write:
    """What writes JSON lines, or CSV with a head."""
    if format_ == "json":
        return lambda answer: put(json.dumps(answer.as_object() | {"image": _text(answer.image)}))
    put(_csv_line(columns))

    def write(answer: Answer) -> None:
        row = _row(answer)
        cells = (row.get(column) for column in columns)
        put(_csv_line([_as_text(cell) if isinstance(cell, list | bool) else cell for cell in cells]))

    return write


def _as_text(cell: list[Any] | bool) -> str:
    return json.dumps(cell, ensure_ascii=False)


def _csv_line(cells: Sequence[object]) -> str:
    line, ending = io.StringIO(), "\r\n"  # cells that hold one of its characters are quoted
    csv.writer(line, lineterminator=ending).writerow(cells)
    return line.getvalue().removesuffix(ending)


@contextmanager
def _parquet(
    part: Path, names: Sequence[str], columns: Mapping[str, type], arrays: Sequence[str]
) -> Iterator[Write]:
    arrow = _pyarrow(str(part))
    kinds = {str: arrow.string(), float: arrow.float64(), bool: arrow.bool_()}
    kinds[list] = arrow.list_(arrow.string())
    types = {column: kinds[kind] for column, kind in columns.items()}
    types |= dict.fromkeys(arrays, arrow.list_(arrow.float32()))
    fields = {"image": arrow.string(), **types, "error": arrow.string()}
    schema = arrow.schema(list(fields.items()), metadata={"classes": json.dumps(list(names))})
    waiting: list[dict[str, Any]] = []
    with arrow.parquet.ParquetWriter(part, schema) as writer:

        def flush() -> None:
            writer.write_table(arrow.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(answer: Answer) -> None:
            waiting.append(_row(answer))
            if len(waiting) == ROWS_AT_ONCE:
                flush()

        yield write
        flush()


def _row(answer: Answer) -> dict[str, Any]:
    """The cells of a row by column; those that are missing are empty."""
    row: dict[str, Any] = {"image": _text(answer.image), "error": answer.error}
    row |= answer.cells() | answer.numbers()
    for place, (name, probability) in enumerate(answer.classes, 1):
        row |= {f"class_{place}": name, f"probability_{place}": probability}
    return row


def _text(path: Path) -> str:
    r"""A path as text; bytes that are no UTF-8 become `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _pyarrow(where: str) -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise DataError(
            f"{where}: writing Parquet needs the package pyarrow; install it (pip install pyarrow), or take --csv"
        ) from error
