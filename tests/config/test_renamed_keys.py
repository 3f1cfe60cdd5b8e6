"""A key under its old name is read as today's, with one line that says so."""

from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.load import RENAMED_KEYS, completed, load_config, warn_renamed
from pipeline.config.optim import OneCycle, ReduceOnPlateau
from pipeline.config.schema import Config

WARNING = "schedule.least_factor is now schedule.min_factor"


@pytest.fixture(autouse=True)
def _nothing_is_said_yet() -> None:
    warn_renamed.cache_clear()


def min_factor(config: Config) -> float:
    assert isinstance(config.schedule, ReduceOnPlateau)
    return config.schedule.min_factor


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "birds.yaml"
    path.write_text("schedule: {name: plateau, least_factor: 0.1}\n")
    return path


def test_in_a_file_with_one_warning_however_often_it_is_read(
    old_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert min_factor(load_config(old_file)) == 0.1
    assert min_factor(load_config(old_file)) == 0.1
    assert capsys.readouterr().err == f"warning: {WARNING}\n"


@pytest.mark.parametrize(
    "override",
    [
        "schedule.least_factor=0.2",
        "schedule.min_factor=0.2",
        "schedule={name: plateau, least_factor: 0.2}",
        "schedule={name: plateau, min_factor: 0.2}",
    ],
)
def test_an_override_wins_over_the_file_whichever_name_each_uses(old_file: Path, override: str) -> None:
    assert min_factor(load_config(old_file, [override])) == 0.2
    old_file.write_text(old_file.read_text().replace("least_factor", "min_factor"))
    assert min_factor(load_config(old_file, [override])) == 0.2


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.phases=[{schedule: {name: one_cycle, rise_fraction: 0.4}}]"],
        ["optim.phases=[{name: sgd}]", "optim.phases.0={schedule: {name: one_cycle, rise_fraction: 0.4}}"],
        [
            "optim.phases=[{schedule: {name: one_cycle, rise_fraction: 0.3}}]",
            "optim.phases.0.schedule.rise_fraction=0.4",
        ],
        ["optim={phases: [{schedule: {name: one_cycle, rise_fraction: 0.4}}]}"],
    ],
)
def test_in_the_schedule_of_a_phase(overrides: list[str]) -> None:
    (phase,) = load_config(None, overrides).optim.phases
    assert phase.schedule == OneCycle(warmup_fraction=0.4)


def test_in_a_saved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    today = load_config(None, ["schedule.name=plateau", "schedule.min_factor=0.1"]).model_dump(mode="json")
    schedule = {"least_factor" if key == "min_factor" else key: v for key, v in today["schedule"].items()}
    saved = {**today, "schedule": schedule}
    assert completed(saved) == today
    assert "least_factor" in saved["schedule"]  # what was read is not changed
    assert capsys.readouterr().err == f"warning: {WARNING}\n"


def test_both_names_in_one_section_are_a_mistake(old_file: Path) -> None:
    old_file.write_text("schedule: {name: plateau, least_factor: 0.1, min_factor: 0.2}\n")
    with pytest.raises(ConfigError, match=r"schedule\.least_factor: unknown key; did you mean"):
        load_config(old_file)


def test_the_old_name_is_none_where_the_section_is_another() -> None:
    with pytest.raises(ConfigError, match=r"train\.least_factor: unknown key"):
        load_config(None, ["train.least_factor=0.1"])


def test_no_new_name_is_an_old_one() -> None:
    assert not RENAMED_KEYS.keys() & set(RENAMED_KEYS.values())
    assert all(old.split(".")[:-1] == new.split(".")[:-1] for old, new in RENAMED_KEYS.items())
