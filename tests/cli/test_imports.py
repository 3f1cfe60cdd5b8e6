"""What verbs import decides how long they take to start, so each is held to what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

NETWORKS = {"torch", "torchvision", "timm"}
EXTRAS = {"albumentations", "matplotlib", "sklearn", "optuna", "tensorboard", "jinja2", "pytorch_grad_cam"}


def imported(code: str, *words: str) -> set[str]:
    """The names of all modules that a program has imported at its end."""
    program = f"import sys\n{code}\nprint('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    ).stdout
    return set(done.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("words", "code", "superfluous"),
    [
        (["--help"], 0, {"numpy", "ruamel.yaml", "pipeline.config.schema"}),
        (["config"], 0, {"numpy"}),
        (["runs", "."], 2, {"cv2", "scipy", "wandb"}),
        (["runs", "diff", "none", "none"], 2, {"cv2", "scipy", "wandb"}),
        (["compare", "none", "none"], 2, {"wandb"}),
        (["sync", "none"], 2, {"wandb", "scipy"}),
        (["predict", "none"], 2, {"pandas", "cv2", "scipy"}),
        (["unknown", "none"], 2, {"pandas", "cv2", "scipy"}),
    ],
)
def test_verbs_that_need_no_network_import_none(
    words: list[str], code: int, superfluous: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = (
        "from pipeline.cli import main\n"
        "try: code = main.run(sys.argv[1:])\n"
        "except SystemExit as ended: code = ended.code\n"
        f"assert code == {code}, code"
    )
    modules = imported(program, *words)
    assert "pipeline.cli.main" in modules
    assert not modules & (superfluous | NETWORKS | EXTRAS)


@pytest.mark.parametrize(
    ("module", "superfluous"),
    [
        ("pipeline.data.prepare", {*NETWORKS, *EXTRAS, "scipy"}),  # data
        ("pipeline.data.loader", {*EXTRAS, "torchvision", "timm", "scipy"}),  # a loader process
        ("pipeline.training.trainer", {*EXTRAS, "scipy.stats"}),
        ("pipeline.answering.predict_images", {*EXTRAS, "scipy.stats", "scipy.optimize"}),
        ("pipeline.inspection.inspect_data", {*EXTRAS, "torchvision", "timm"} - {"jinja2"}),
        ("pipeline.models.summary", {*EXTRAS, "scipy"}),
        ("pipeline.training.schedule_preview", EXTRAS - {"matplotlib"}),
    ],
)
def test_what_a_verb_does_without_is_not_imported(module: str, superfluous: set[str]) -> None:
    modules = imported(f"import {module}")
    assert module in modules
    assert not modules & superfluous


def test_modules_are_imported_without_garbage_collection_which_goes_on_afterwards() -> None:
    code = (
        "import gc, contextlib\n"
        "from pipeline.cli.verbs.verb import importing\n"
        "with contextlib.suppress(ZeroDivisionError), importing():\n"
        "    assert not gc.isenabled()\n"
        "    import json.tool\n"
        "    1 / 0\n"
        "assert gc.isenabled()\n"
        "frozen = gc.get_freeze_count()\n"
        "assert frozen > 0\n"
        "objects = [[] for _ in range(1000)]\n"
        "with importing(): import json.tool\n"
        "assert gc.get_freeze_count() == frozen, 'nothing was imported, and objects of the caller were frozen'"
    )
    assert "json.tool" in imported(code)
