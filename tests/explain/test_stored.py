"""Explanations that are kept: only as they were made, and from the same inputs."""

from pathlib import Path

import pytest

from pipeline.explain import stored

INPUTS = {"predictions": "a", "ids": [1, 2]}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two files that were made together."""
    paths = [tmp_path / "one.csv", tmp_path / "two.json"]
    with stored.making(paths, INPUTS):
        for path in paths:
            path.write_text(path.name)
    return paths


def test_files_are_kept_for_the_same_inputs_alone(paths: list[Path]) -> None:
    assert stored.is_kept(paths, INPUTS)
    assert not stored.is_kept(paths, {**INPUTS, "ids": [1]})


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("content", [None, "", "other"])
def test_a_file_that_is_not_as_it_was_made_is_not_kept(
    paths: list[Path], position: int, content: str | None
) -> None:
    paths[position].unlink()
    if content is not None:
        paths[position].write_text(content)
    assert not stored.is_kept(paths, INPUTS)


@pytest.mark.parametrize("stamp", ["", "{", "[]", "\0", '{"inputs": "of version 0.1"}'])
def test_a_damaged_stamp_keeps_nothing(paths: list[Path], stamp: str) -> None:
    paths[0].with_name("one.csv.stamp.json").write_text(stamp)
    assert not stored.is_kept(paths, INPUTS)


def test_a_process_that_ends_while_it_makes_them_leaves_nothing_that_is_kept(paths: list[Path]) -> None:
    with pytest.raises(KeyboardInterrupt), stored.making(paths, {"predictions": "b"}):
        paths[0].write_text("half")
        raise KeyboardInterrupt
    paths[0].write_text("one.csv")  # as it was for the inputs before
    assert not stored.is_kept(paths, INPUTS)
    assert not stored.is_kept(paths, {"predictions": "b"})
