"""Tables as LaTeX: what LaTeX would take for a command is escaped, and long tables break over pages."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pipeline.common import latex


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Brewer's & co_5 100 % #1 $", r"Brewer's \& co\_5 100 \% \#1 \$"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        (
            "a~b^c <d> |e|",
            r"a\textasciitilde{}b\textasciicircum{}c \textless{}d\textgreater{} \textbar{}e\textbar{}",
        ),
        ("two\nlines\tand ü", "two lines and ü"),
    ],
)
def test_text_is_set_as_it_is_written(text: str, expected: str) -> None:
    assert latex.escape(text) == expected


def test_a_table_has_booktabs_rules_and_a_column_for_each_head() -> None:
    assert latex.tabular(["", "top-1", "n"], [["A & B", "81.3", "652"], ["C_1", "2 %", "3"]]) == (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        " & top-1 & n \\\\\n"
        "\\midrule\n"
        "A \\& B & 81.3 & 652 \\\\\n"
        "C\\_1 & 2 \\% & 3 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_a_table_that_does_not_fit_on_a_page_repeats_its_head() -> None:
    lines = latex.tabular(["class", "n"], [[f"c{i}", str(i)] for i in range(46)]).splitlines()
    assert lines[0] == "% needs \\usepackage{booktabs, longtable}"
    assert lines[2:8] == [
        "\\toprule",
        "class & n \\\\",
        "\\midrule",
        "\\endhead",
        "\\bottomrule",
        "\\endfoot",
    ]
    assert lines[8:] == [*(f"c{i} & {i} \\\\" for i in range(46)), "\\end{longtable}"]


def test_the_numbers_in_full_stand_beside_it(tmp_path: Path) -> None:
    raw = pd.DataFrame({"name": ["a_b", "c"], "value": [1 / 3, 0.5]})
    shown = pd.DataFrame({"name": ["a_b", "c"], "value": ["33.3", "50.0"]})
    latex.write_table(shown, raw, tmp_path / "table")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), raw)
    assert re.findall(r"^(.*) & ([\d.]+) \\\\$", (tmp_path / "table.tex").read_text(), re.M) == [
        ("a\\_b", "33.3"),
        ("c", "50.0"),
    ]
