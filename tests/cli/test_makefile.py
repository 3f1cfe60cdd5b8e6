"""make calls the verbs one after another, with each path as one argument, whatever it is made of."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Make = Callable[..., list[list[str]]]
STUB = """#!{python}
import json, os, sys, time
with open({log!r}, "a", buffering=1) as log:
    print(json.dumps(["begin", *sys.argv[1:]]), file=log)
    time.sleep(float(os.environ.get("SECONDS", "0")))
    print(json.dumps(["end", *sys.argv[1:]]), file=log)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Call make with a Python that writes down its arguments; return them, and what stood around them."""
    binaries, log = tmp_path / "bin", tmp_path / "log"
    binaries.mkdir()
    (binaries / "python").write_text(STUB.format(python=sys.executable, log=str(log)))
    (binaries / "python").chmod(0o755)
    (tmp_path / "ready").touch()  # newer than pyproject.toml: nothing is installed
    for name in ("CONFIG", "ARGS", "IMAGES", "RUN", "GPUS", "MAKEFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str, **environment: str) -> list[list[str]]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ours = [f"BIN={binaries}", f"READY={tmp_path / 'ready'}"]
        command = ["make", "--directory", str(ROOT), *ours, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


@pytest.mark.parametrize("jobs", [["-j3"], []])
def test_data_train_and_eval_follow_one_another_also_with_j(make: Make, jobs: list[str]) -> None:
    lines = make(*jobs, "data", "train", "eval", SECONDS="0.3", **({} if jobs else {"MAKEFLAGS": "-j3"}))
    assert [(line[0], line[3]) for line in lines] == [
        (moment, verb) for verb in ("data", "train", "eval") for moment in ("begin", "end")
    ]


@pytest.mark.parametrize(
    "path", ["my birds/my owls.yaml", "d'or.yaml", 'a"b.yaml', "a;b&c.yaml", "a  b.yaml"]
)
@pytest.mark.parametrize(
    "verb",
    [
        "data",
        "inspect",
        "train",
        "eval",
        "config",
        "doctor",
        "summary",
        "audit",
        "probe",
        "lr-find",
        "report",
    ],
)
def test_config_is_one_argument(make: Make, verb: str, path: str) -> None:
    line, _ = make(verb, f"CONFIG={path}", "ARGS=optim.lr=1 'run.root=my runs'")
    assert line == ["begin", "-m", "pipeline", verb, "--config", path, "optim.lr=1", "run.root=my runs"]


def test_the_words_of_images_are_pictures_and_a_picture_with_spaces_is_one(
    make: Make, tmp_path: Path
) -> None:
    head = ["begin", "-m", "pipeline", "predict", "--config", "configs/cub200_resnet50.yaml"]
    bird, owl = tmp_path / "my bird.jpg", tmp_path / "owl d'or.jpg"
    bird.touch()
    owl.touch()
    tried = [f"IMAGES={bird}", f"IMAGES={owl}", f'IMAGES="{bird}" "{owl}"', "IMAGES=a.jpg b.jpg"]
    found = [make("predict", images)[-2] for images in tried]
    assert found == [
        [*head, str(bird)],
        [*head, str(owl)],
        [*head, str(bird), str(owl)],
        [*head, "a.jpg", "b.jpg"],
    ]


def test_a_run_a_sweep_and_a_study_with_spaces_are_one_argument(make: Make, tmp_path: Path) -> None:
    (tmp_path / "my runs/a").mkdir(parents=True)
    assert make("sync", f"RUN={tmp_path}/my runs/a")[-2][4:] == [f"{tmp_path}/my runs/a"]
    assert make("sync", "RUN=runs/a runs/b")[-2][4:] == ["runs/a", "runs/b"]
    assert make("sweep", "SWEEP=my sweeps/a.yaml")[-2][4:] == ["my sweeps/a.yaml"]
    assert make("study", "NAME=my study.yaml")[-2][4:] == ["my study.yaml"]


def test_a_temporary_folder_with_spaces_is_one_argument_and_is_removed(make: Make, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp dir"
    temporary.mkdir()
    lines = make("smoke", TMPDIR=str(temporary))
    (data,) = {line[6] for line in lines}
    assert data.startswith(f"data.root={temporary}/")
    assert {len(line) for line in lines} == {8}
    assert not [*temporary.iterdir()]
