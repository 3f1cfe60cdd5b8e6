"""A key that holds text takes what is written; a path is that of a person's home, never of a folder `~`."""

from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.load import dump_config, load_config

DIGITS = [
    "001",
    "1e3",
    "20240101",
    "0x1F",
    "true",
    "1_000",
    "2024-99-99",
    "1.50",
    ".5",
    "00000000",
    "12e03",
    "_1.0",
]


@pytest.mark.parametrize("text", DIGITS)
def test_a_name_of_digits_is_that_name_in_an_override_and_in_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(f"tracking: {{name: {text}, tags: [{text}, a]}}\n")
    from_file = load_config(path).tracking
    assert (from_file.name, from_file.tags) == (text, (text, "a"))
    tracking = load_config(None, [f"tracking.name={text}", f"tracking.tags=[{text}]"]).tracking
    assert (tracking.name, tracking.tags) == (text, (text,))
    assert load_config(None, [f"tracking={{name: {text}}}"]).tracking.name == text
    assert load_config(None, [f"optim.phases=[{{name: {text}}}]"]).optim.phases[0].name == text


@pytest.mark.parametrize("digest", ["0" * 32, "1" * 32, "0" * 12 + "e" + "1" * 19])
def test_an_md5_of_digits_is_text(digest: str) -> None:
    assert load_config(None, [f"data.archive_md5={digest}"]).data.archive_md5 == digest


@pytest.mark.parametrize("text", DIGITS)
def test_what_is_dumped_is_the_same_text_when_it_is_read_again(tmp_path: Path, text: str) -> None:
    config = load_config(None, [f"tracking.notes={text}"])
    (tmp_path / "copy.yaml").write_text(dump_config(config, comments=True))
    assert load_config(tmp_path / "copy.yaml") == config


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'001'", "001"),
        ('"a\\tb"', "a\tb"),
        ("to a: b", "to a: b"),
        ("a #1", "a #1"),
        ("[draft] of May", "[draft] of May"),
        ("{x}", "{x}"),
        ("null", None),
        ("", None),
    ],
)
def test_quotes_and_null_are_those_of_yaml_and_all_else_is_text(written: str, text: str | None) -> None:
    assert load_config(None, [f"tracking.notes={written}"]).tracking.notes == text


def test_a_key_that_may_hold_a_number_keeps_yamls_types() -> None:
    config = load_config(
        None, ["optim.options={a: 1, b: 1e-3, c: x, d: true, e: '1'}", "eval.batch_size=010"]
    )
    assert config.optim.options == {"a": 1, "b": 0.001, "c": "x", "d": True, "e": "1"}
    assert config.eval.batch_size == 10


def test_keys_are_text_too() -> None:
    assert load_config(None, ["optim.options={1: 2}"]).optim.options == {"1": 2}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


PATHS = {
    "data.root": lambda config: config.data.root,
    "data.archive": lambda config: config.data.archive,
    "model.weights": lambda config: config.model.weights,
    "run.root": lambda config: config.run.root,
    "eval.checkpoint": lambda config: Path(config.eval.checkpoint),
    "train.resume": lambda config: Path(config.train.resume),
}


@pytest.mark.parametrize("key", PATHS)
def test_the_tilde_of_a_path_is_the_home_folder(home: Path, key: str) -> None:
    section, name = key.split(".")
    (home / "birds.yaml").write_text(f"{section}: {{{name}: ~/birds #1}}\n")
    assert PATHS[key](load_config(None, [f"{key}=~/birds #1"])) == home / "birds #1"
    (home / "birds.yaml").write_text(f"{section}:\n  {name}: ~/birds\n")
    assert PATHS[key](load_config(home / "birds.yaml")) == home / "birds"


@pytest.mark.parametrize("key", PATHS)
def test_a_variable_in_a_path_is_refused(key: str) -> None:
    said = f'{key}: $SCRATCH/pd holds "$", and variables are not expanded here; write the path itself'
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{key}=$SCRATCH/pd"])
    assert str(caught.value) == f"overrides: {said}"


def test_the_home_of_nobody_is_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.root: the home folder of ~no.such.user/x is not known; write"
    ):
        load_config(None, ["data.root=~no.such.user/x"])
