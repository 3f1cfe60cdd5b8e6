"""Tables that people write: the separator, cells as they stand there, what is no table, and the memory it takes."""

import tracemalloc
from pathlib import Path

import pytest

from pipeline.common.errors import DataError
from pipeline.data import text_tables
from pipeline.data.text_tables import read_texts


def read(folder: Path, text: str) -> list[dict[str, str]]:
    path = folder / "list.csv"
    path.write_bytes(text.encode())
    return read_texts(path, "give one", "write it again", ("path", "label")).to_dict("records")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "header",
    [
        "path,label,note (a;b;c;d)",
        'path,label,"note, and (a;b;c;d)"',
        "path;label;note (a,b,c,d)",
        "path\tlabel\tnote (a,b,c,d)",
        '"path","label","note (a;b;c;d)"',
    ],
)
def test_the_separator_is_the_one_that_parts_the_columns_that_are_needed(tmp_path: Path, header: str) -> None:
    separator = next(each for each in ",;\t" if f"label{each}" in header.replace('"', ""))
    (row,) = read(tmp_path, f"{header}\r\n" + separator.join(["a.jpg", "owl", "x"]))
    assert row["path"] == "a.jpg" and row["label"] == "owl" and list(row.values())[2] == "x"


def test_without_one_of_these_columns_it_is_the_most_frequent_separator(tmp_path: Path) -> None:
    assert read(tmp_path, "class;genus (a, b);family\n1;2;3\n") == [
        {"class": "1", "genus (a, b)": "2", "family": "3"}
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_cells_are_what_stands_there_and_rows_of_spaces_alone_are_none(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tables, "ROWS_AT_ONCE", 2)
    rows = ["path, label ", "a, owl", "", "   ", " , ", '"b\n""c"""', "d,NA,", "e\u2028f,\x0c007"]
    assert read(tmp_path, "\ufeff" + ending + ending.join(rows)) == [
        {"path": "a", "label": " owl"},
        {"path": 'b\n"c"', "label": ""},
        {"path": "d", "label": "NA"},
        {"path": "e\u2028f", "label": "\x0c007"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file; write it again"),
        ("\ufeff\r\n \n", "an empty file; write it again"),
        ('path,label\n"a,b\n', r"no readable table \(unexpected end of data\); write it again"),
        ("path,path\n1,2\n", "a column stands there twice among path, path"),
        (
            "path,label\na,b\n\na,b,c\na,b,,\na,b,c\n",
            r"rows with more cells than the first line has columns: 3, 5 \(2 in all\); quote what holds a comma",
        ),
    ],
)
def test_what_is_no_table_is_one_sentence(
    tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tables, "ROWS_AT_ONCE", 2)
    with pytest.raises(DataError, match=f"list.csv: {said}"):
        read(tmp_path, text)


def test_a_long_table_takes_the_memory_of_its_text_a_few_times_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that trains has to list a million pictures, too."""
    monkeypatch.setattr(text_tables, "ROWS_AT_ONCE", 1_000)
    path = tmp_path / "long.csv"
    path.write_text(
        "path,label\n" + "".join(f"class {n % 9}/{n:07}.jpg,class {n % 9}\n" for n in range(30_000))
    )
    tracemalloc.start()
    try:
        table = read_texts(path, "give one", "write it again")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(table) == 30_000
    assert peak < 10 * path.stat().st_size
