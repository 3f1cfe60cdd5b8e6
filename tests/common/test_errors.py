"""What the system refuses is one sentence; the first error of several is the one that is raised."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.common.errors import REFUSALS, FileRefused, close_after, named, refusals_as_sentences, refused


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: errno.errorcode[number])
def test_what_the_user_can_mend_names_the_path_and_what_to_do(number: int) -> None:
    with pytest.raises(FileRefused) as raised, refusals_as_sentences():
        raise OSError(number, os.strerror(number), "runs/a/last.pt")
    path, _, what = str(raised.value).partition(": ")
    assert (path, what) == ("runs/a/last.pt", REFUSALS[number])
    assert what.count("; ") == 1
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "", "a"), OSError("b"), TimeoutError(), ValueError()]
)
def test_any_other_exception_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, refusals_as_sentences():
        raise error
    assert raised.value is error
    assert refused(error) is None


def test_a_file_that_is_open_is_named_by_whoever_writes_to_it(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match=r"^log\.jsonl: the disk is full; "):
        with refusals_as_sentences(), named("log.jsonl"), Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"a record")
    with pytest.raises(FileRefused, match=rf"^{tmp_path}: is a folder"):
        with refusals_as_sentences(), named("log.jsonl"):
            tmp_path.open("w")


def test_closing_closes_in_the_end_and_its_error_is_raised() -> None:
    closed: list[str] = []
    with close_after(lambda: closed.append("a"), closed.append):
        assert not closed
    assert closed == ["a"]

    def fail() -> None:
        raise KeyError("second")

    with pytest.raises(KeyError), close_after(fail, closed.append):
        pass
    assert closed == ["a"]


@pytest.mark.parametrize(
    ("second", "warnings"),
    [
        (KeyError("second"), ["while ending after that error: KeyError('second')"]),
        (OSError(errno.ENOSPC, "", "first"), []),  # it is said already
        (
            OSError(errno.EROFS, "", "b"),
            [f"while ending after that error: b: {REFUSALS[errno.EROFS]}"],
        ),
    ],
)
def test_an_error_of_the_end_never_hides_the_first_one(second: Exception, warnings: list[str]) -> None:
    said: list[str] = []

    def fail() -> None:
        raise second

    first = OSError(errno.ENOSPC, "", "first")
    with pytest.raises(OSError) as raised, close_after(fail, said.append):
        raise first
    assert raised.value is first
    assert said == warnings
