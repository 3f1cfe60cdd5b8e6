import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.cli import arguments, main
from pipeline.cli.verbs.verb import config_of, paths_and_overrides
from pipeline.common import signals
from pipeline.common.errors import REFUSALS
from pipeline.config.load import load_config
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny

LATE = "numpy", "torch", "pandas", "cv2", "albumentations", "wandb", "timm", "optuna", "matplotlib"
VERBS = {name: verb for group in arguments.GROUPS.values() for name, verb in group.items()}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main.run([*argv, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_and_config_answer_without_importing_torch() -> None:
    code = (
        "import sys, contextlib\n"
        "from pipeline.cli import main\n"
        "for argv in [['--help'], ['train', 'optim.lrr=1'], ['train', '--help'], ['config']]:\n"
        "    with contextlib.suppress(SystemExit): main.run(argv)\n"
        f"print('LATE', [name for name in {LATE!r} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "LATE []"


@pytest.mark.parametrize("verb", ["train", "lr-find", "inspect", "eval", "report", "audit", "probe"])
def test_missing_data_are_said_without_importing_torch(verb: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"print(main.run([{verb!r}, 'data.root={tmp_path}/none', 'run.root={tmp_path}']))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert f"{tmp_path}/none/cub200" in done.stderr
    assert "missing; run `plumage data` with the same --config and keys" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_shows_every_verb_on_one_line_of_its_group(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = help_of(capsys).splitlines()
    assert all(len(line) <= max(int(columns), len(arguments.DESCRIPTION)) for line in lines)
    first, last = lines.index("prepare:"), lines.index("options:")
    shown = [line.split()[0] if line.startswith(" ") else line for line in lines[first:last] if line]
    assert shown == [text for title, verbs in arguments.GROUPS.items() for text in (f"{title}:", *verbs)]


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_ends_with_its_own_two_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, title, first, second = help_of(capsys, name).splitlines()
    assert title == "examples:"
    assert [first.strip(), second.strip()] == list(VERBS[name].examples)


@pytest.mark.parametrize("example", [example for verb in VERBS.values() for example in verb.examples])
def test_every_example_is_understood(example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])
    words = words[words.index("train") if "pipeline.launch" in words else 1 :]
    verb, parsed = arguments.parse(words)
    assert example in verb.examples
    if verb.arguments is VERBS["train"].arguments:
        config_of(parsed)


@pytest.mark.parametrize("columns", ["1", "0", "-3", "x", "40", "99999999"])
def test_a_terminal_of_any_width_is_written_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main.run(["config"]) == 0
    assert "lr-find" in help_of(capsys)


def test_python_m_pipeline_has_the_help_of_the_installed_command(capsys: pytest.CaptureFixture[str]) -> None:
    done = tiny.launch([sys.executable, "-m", "pipeline", "data", "--help"])
    assert (done.returncode, done.stdout) == (0, help_of(capsys, "data"))
    assert done.stdout.startswith("usage: plumage data ")


def test_positional_arguments_may_stand_before_and_behind_options() -> None:
    _, parsed = arguments.parse(["compare", "runs/a", "--split", "val", "runs/b"])
    assert parsed.positionals == ["runs/a", "runs/b"]


def test_an_override_is_told_from_a_path_by_its_equals_sign(tmp_path: Path) -> None:
    picture = tmp_path / "size=64.png"
    picture.touch()
    positionals = ["runs/a", "optim.lr=0.1", str(picture)]
    assert paths_and_overrides(positionals) == ([Path("runs/a"), picture], ["optim.lr=0.1"])


@pytest.mark.parametrize(
    "argv", [["train", "optim.lr=fast"], ["eval", "--config", "no.yaml"], ["data", "lr"]]
)
def test_a_wrong_configuration_is_one_sentence_and_exit_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(argv) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_the_exit_code_of_the_process_is_that_of_the_verb() -> None:
    assert tiny.launch([sys.executable, "-m", "pipeline", "data", "lr"]).returncode == 2


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["fly"], "fly: no such verb; `plumage --help` lists them"),
        (["trian"], "trian: no such verb; did you mean train?"),
        (["train", "--lr", "1"], "unknown option --lr; overrides are written section.key=value"),
    ],
)
def test_an_unknown_verb_or_option_is_exit_code_2(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(argv)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_and_is_exit_code_1() -> None:
    code = (
        "from pipeline.cli import arguments, main\n"
        "def broken(_): raise KeyError('a bug')\n"
        "data = arguments.GROUPS['prepare']\n"
        "data['data'] = data['data']._replace(run=broken)\n"
        "import sys; sys.argv = ['x', 'data']\n"
        "main.main()"
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
    assert load_config(tmp_path / "demo.yaml") == load_config(Path("configs/demo.yaml"), ["optim.lr=0.5"])


def test_train_ends_in_one_json_line_that_says_where_the_best_epoch_is(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", trained) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["run"] == str(trained / "runs/tiny")
    assert Path(result["checkpoint"]).is_file()
    assert result["best_epoch"] in (1, 2, 3)


def a_verb_that(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a verb whose work is replaced."""
    group = arguments.GROUPS["prepare"]
    monkeypatch.setitem(group, "data", group["data"]._replace(run=lambda _: act()))
    return ["data"]


@pytest.mark.parametrize("words", [["train"], ["data"], ["eval"], ["schedule"], ["doctor", "--quick"]])
@pytest.mark.parametrize("where", ["run.root=FILE", "data.root=FILE"])
def test_a_root_that_is_a_file_is_one_sentence(
    birds: Path, words: list[str], where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    code = main.run([*words, *tiny.overrides(tmp_path), where.replace("FILE", str(file))])
    said = capsys.readouterr().err
    unconcerned = (["data"], "run.root=FILE"), (["schedule"], "data.root=FILE")
    assert code == (0 if (words, where) in unconcerned else 2)
    assert "Traceback" not in said
    assert file.read_text() == "mine"
    if code and words != ["doctor", "--quick"]:
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert str(file) in error


def test_a_name_that_is_too_long_for_the_disk_is_one_sentence(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, f"run.root={tmp_path / ('a' * 300)}") == 2
    assert capsys.readouterr().err.endswith(
        "aaa/tiny: the name is too long for this disk; use a shorter one\n"
    )


def test_a_full_disk_ends_a_training_with_one_sentence_and_the_status_says_it(
    birds: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tiny.do("train", small_disk, "tracking.csv=true", "tracking.tensorboard=true", "data.workers=0")
    run, said = small_disk / "runs/tiny", capsys.readouterr().err.splitlines()
    why = f"{run / 'checkpoints/best.pt'}: {REFUSALS[errno.ENOSPC]}"
    assert code == 2
    assert said[-1] == f"error: {why}"
    assert not [line for line in said if "Traceback" in line]
    status = RunDirectory(run).read_status()
    assert status is not None
    assert (status.state, status.why) == ("failed", why)
    assert not list(run.rglob("*.part"))
    assert len(RunDirectory(run).read_log().epochs()) == 1


def test_a_disk_that_becomes_read_only_is_one_sentence_and_nothing_is_lost(
    birds: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tiny.launch(["mount", "-o", "remount,ro", str(small_disk)])
    assert done.returncode == 0
    for words in (["train"], ["schedule"]):
        assert main.run([*words, *tiny.overrides(small_disk)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert errors[0].endswith(REFUSALS[errno.EROFS])
        assert str(small_disk / "runs") in errors[0]


def test_a_result_for_which_standard_output_has_no_room_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "config"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == f"error: standard output: {REFUSALS[errno.ENOSPC]}\n"


def test_an_error_that_standard_error_has_no_room_for_keeps_its_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "pipeline", "config", "optim.lrr=1"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_the_verb_alone_changes_what_signals_and_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1), threading.excepthook]

    before, within = handlers(), []
    assert main.run(a_verb_that(lambda: within.extend(handlers()), monkeypatch)) == 0
    assert within[:2] == [signals.raise_stopped] * 2
    assert handlers() == before

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    assert main.run(a_verb_that(stop, monkeypatch)) == 75
    assert handlers() == before


def test_what_the_system_refuses_a_thread_of_a_library_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "events")

    def start() -> None:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    assert main.run(a_verb_that(start, monkeypatch)) == 0
    assert capsys.readouterr().err == f"warning: events: {REFUSALS[errno.ENOSPC]}\n"


@pytest.mark.slow
def test_on_two_ranks_one_of_them_says_that_the_disk_is_full(birds: Path, small_disk: Path) -> None:
    launcher = [sys.executable, "-m", "pipeline.launch", "--standalone", "--nproc-per-node", "2"]
    done = tiny.launch([*launcher, *tiny.arguments("train", small_disk)], timeout=300)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (2, 1)
    assert errors[0].endswith(f"best.pt: {REFUSALS[errno.ENOSPC]}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "code"), [(["config"], 0), (["config", "optim.lrr=1"], 2)])
def test_a_signal_that_comes_when_the_verb_has_ended_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    raising = signals.raising

    @contextmanager
    def with_a_late_signal() -> Iterator[None]:
        with raising():
            yield
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(signals, "raising", with_a_late_signal)
    assert main.run(words) == code


@pytest.mark.parametrize("verb", ["data", "train", "eval"])
def test_a_world_size_that_is_no_number_is_one_sentence(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert tiny.do(verb, tmp_path) == 2
    assert "WORLD_SIZE='two' is not a number of ranks" in capsys.readouterr().err
