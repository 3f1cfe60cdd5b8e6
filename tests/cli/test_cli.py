import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main, verbs
from tests.helpers import tiny

LATE = "torch", "pandas", "cv2", "albumentations", "wandb", "timm"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("argv", [["--help"], ["train", "optim.lrr=1"], ["train", "--help"], ["config"]])
def test_help_and_config_answer_without_importing_torch(argv: list[str]) -> None:
    code = (
        "import sys, contextlib\n"
        "from pipeline import cli\n"
        f"with contextlib.suppress(SystemExit): cli.run({argv!r})\n"
        f"print('LATE', [name for name in {LATE!r} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "LATE []"


def test_help_shows_every_verb_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"    {verb} " in said for verb in verbs.OF_A_CONFIG)
    assert "examples:" in said


@pytest.mark.parametrize(
    "argv", [["train", "optim.lr=fast"], ["eval", "--config", "no.yaml"], ["data", "lr"]]
)
def test_a_wrong_configuration_is_one_sentence_and_exit_code_2(argv: list[str]) -> None:
    done = tiny.launch([sys.executable, "-m", "pipeline", *argv])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_unknown_verb_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(["fly"])
    assert ended.value.code == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_and_is_exit_code_1(tmp_path: Path) -> None:
    code = (
        "from pipeline import cli\n"
        "def broken(config): raise KeyError('a bug')\n"
        "cli.OF_A_CONFIG['data'] = broken\n"
        "import sys; sys.argv = ['x', 'data']\n"
        "cli.main()"
    )
    done = tiny.launch([sys.executable, "-c", code])
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'a bug'" in done.stderr


def test_config_prints_yaml_that_reads_back_as_the_same_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["config", "--config", "configs/demo.yaml", "optim.lr=0.5"]) == 0
    (tmp_path / "demo.yaml").write_text(capsys.readouterr().out)
    read_back = main.config_file.load(tmp_path / "demo.yaml")
    assert read_back == main.config_file.load(Path("configs/demo.yaml"), ["optim.lr=0.5"])


def test_train_ends_in_one_json_line_that_says_where_the_best_epoch_is(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", trained) == 0
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said["run"] == str(trained / "runs/tiny")
    assert Path(said["checkpoint"]).is_file()
    assert said["best_epoch"] in (1, 2, 3)
