"""What was decided and noted before is kept, an image once."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.audit import decisions
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig


def test_a_decision_and_the_notes_on_its_image_are_kept_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text(
        "id,path,decision,who,why,seen\n2,b.jpg,,Carl,blurred,\n1,,,Carl,young bird,\n2,, ,,,twice\n"
        "1,a.jpg,robin,Ann,,\n"
    )
    (tmp_path / "d.csv").write_text("id,decision,who,why\n2,crow,Bob,beak\n1,gull,Bob,size\n3,drop,,\n")
    data = DataConfig(corrections=tmp_path / "d.csv")
    shown = ["id", "path", "decision", "who", "why", "seen"]
    before = decisions.earlier(path, data)[shown]
    assert before.to_numpy().tolist() == [
        [2, "b.jpg", "crow", "Bob; Carl", "beak; blurred", "twice"],
        [1, "a.jpg", "robin", "Ann; Carl", "young bird", ""],
        [3, "", "drop", "", "", ""],
    ]
    before.to_csv(path, index=False)
    pd.testing.assert_frame_equal(decisions.earlier(path, data)[shown], before)
    path.write_text("id,label\n4,crow\n")
    assert decisions.earlier(path, DataConfig())[["id", "decision"]].to_numpy().tolist() == [[4, "crow"]]
    path.write_text("id,decision,why\n,,\n")
    assert decisions.earlier(path, DataConfig())["id"].dtype == "int64"


@pytest.mark.parametrize("number", ["", "a7", "7.0", "9" * 30])
def test_a_note_without_an_image_is_one_sentence(tmp_path: Path, number: str) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text(f"id,decision,why\n1,crow,\n{number},,ask Ann\nx,,\n")
    with pytest.raises(
        DataError, match=r"corrections.csv: notes without a whole number .*\(1 in all\); give"
    ):
        decisions.earlier(path, DataConfig())
