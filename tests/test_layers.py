"""The rooms of `pipeline/` in import order, the one rule between them, and what a wheel holds."""

import ast
import subprocess
import sys
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = [
    "common",
    "config",
    "distributed",
    "data",
    "models",
    "runs",
    "plots",
    "inference",
    "training",
    "evaluation",
    "answering",
    "explain",
    "probe",
    "unknown",
    "export",
    "report",
    "webpage",
    "serving",
    "audit",
    "inspection",
    "wandb_sync",
    "doctor",
    "experiments",
    "protocol",
    "api",
    "cli",
]
ENTRANCES = {"__init__", "__main__", "launch"}
MOST_LINES = 350


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without `pipeline.`"""
    folder = ROOT / "pipeline"
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path
        for path in sorted(folder.rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or within a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("pipeline.") for name in names} & modules().keys()


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in modules()} == {*ROOMS, *ENTRANCES}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_from_rooms_earlier_in_the_list(name: str) -> None:
    allowed = ROOMS[: ROOMS.index(name) + 1]
    later = {
        (module, imported)
        for module, path in modules().items()
        if room(module) == name
        for imported in imports(path)
        if room(imported) not in allowed
    }
    assert not later


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_has_no_import_circle(name: str) -> None:
    inside = {module: path for module, path in modules().items() if room(module) == name}
    graph = {module: imports(path) & inside.keys() for module, path in inside.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_tests_mirror_the_rooms() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    assert folders == {*ROOMS, "helpers"}


def test_files_keep_one_topic_and_functions_fit_on_a_screen() -> None:
    long_files, long_functions = [], []
    for name, path in modules().items():
        text = path.read_text()
        if len(text.splitlines()) > MOST_LINES:
            long_files.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 50:
                long_functions.append(f"{name}.{node.name}")
    assert (long_files, long_functions) == ([], [])


def test_no_test_file_imports_another_one() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("tests")
        and not (node.module or "").startswith("tests.helpers")
    ]
    assert not wrong


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_each_can_be_imported_from_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    files = subprocess.run(
        [
            "git",
            "ls-files",
            "-co",
            "--exclude-standard",
            "pipeline",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in files:  # a build leaves folders beside its sources
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("plumage-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert {path.relative_to(installed) for path in installed.rglob("*.html")} == {
        path.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*.html")
    }
    names = [f"pipeline.{name}".removesuffix(".__init__") for name in modules() if name != "__main__"]
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(installed)!r})\n"
        f"modules = [importlib.import_module(name) for name in {names!r}]\n"
        f"assert all(module.__file__.startswith({str(installed)!r}) for module in modules), 'not of the wheel'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
