"""What a program gives as a configuration is what the command line would make of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.api.configuration import config_of_run, to_config
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.load import load_config
from pipeline.config.schema import Config


def test_sections_dotted_keys_and_a_file_make_the_same_configuration(tmp_path: Path) -> None:
    texts = ["optim.lr=1e-05", "optim.momentum=0.8", "data.root=some where", "model.options={drop_rate: 0.1}"]
    expected = load_config(None, [*texts, "run.name=007"])
    optim = {"lr": 1e-5, "momentum": np.float64(0.8)}
    model = {"options": {"drop_rate": 0.1}}
    given = {"optim": optim, "model": model, "data.root": Path("some where"), "run.name": "007"}
    assert to_config(given) == expected
    assert to_config({"optim": {"lr": 0.5}, **given}, {"optim.lr": 1e-5}) == expected
    (tmp_path / "007.yaml").write_text("optim: {lr: 1.0e-5, momentum: 0.1}\ndata: {root: some where}\n")
    overrides = {"optim": {"momentum": 0.8}, "model": model}
    assert to_config(tmp_path / "007.yaml", overrides) == to_config(str(tmp_path / "007.yaml"), overrides)
    assert to_config(tmp_path / "007.yaml", overrides) == expected


@pytest.mark.parametrize("text", ["true", "1e5", "null", "a #1", "é \U0001f600", 'say "x"', "two\nlines", ""])
def test_text_stays_text(text: str) -> None:
    assert to_config({"tracking.notes": text}).tracking.notes == text


def test_a_configuration_keeps_its_other_keys() -> None:
    config = to_config(
        {"schedule.name": "multi_step", "schedule.milestones": [3, 5], "train.epochs": 9, "run.name": "x"}
    )
    assert to_config(config) is config
    changed = to_config(config, {"optim.lr": 0.5, "tracking.group": None})
    assert changed.optim.lr == 0.5
    assert changed.model_copy(update={"optim": config.optim}) == config


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"optim.lrr": 1}, "optim.lrr"),
        ({"optim": {"lr": "fast"}}, "optim.lr"),
        ({"optim.lr": object()}, "optim.lr: a value of type object is not a configuration value; give text"),
        ({3: 4}, "3: unknown key"),
        ({"optim.lr": float("nan")}, "optim.lr"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(keys: dict[Any, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        to_config(keys)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_is_found_where_its_folder_lies_now(tmp_path: Path) -> None:
    folder = tmp_path / "moved" / "here"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: old, root: elsewhere}\noptim: {lr: 0.5}\n")
    config = config_of_run(folder, ["eval.tta=flip"])
    assert isinstance(config, Config)
    assert (config.run_dir, config.optim.lr, config.eval.tta) == (folder, 0.5, "flip")
    with pytest.raises(DataError, match="not a run directory, as it has no config.yaml; name one such as"):
        config_of_run(tmp_path)
