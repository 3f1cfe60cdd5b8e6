"""A file imports only from lower layers: DESIGN's table, held here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {
        "errors",
        "files",
        "locks",
        "seeding",
        "signals",
        "terminal",
        "memory",
        "precision",
        "distributed",
        "roll_call",
        "intervals",
        "metrics",
        "confusion",
        "calibration",
        "paired",
        "records",
        "status",
        "gradients",
        "environment",
        "data.drawing",
        "data.species",
        "data.planted",
    },
    {"config_solver", "models.heads", "doctor.finding"},
    {"config_outcome"},
    {"config", "data.table", "data.birds", "data.download", "data.unpack", "models.resnet"},
    {
        "config_file",
        "config_words",
        "data.arrays",
        "data.cub",
        "data.synthetic",
        "data.splits",
        "data.store",
        "data.transforms",
        "models.parity",
        "models.weights",
        "models.build",
        "schedule",
        "optim",
        "swats",
        "phases",
        "report.screen",
        "report.verdict",
        "stored",
        "follower",
        "sync.rows",
    },
    {
        "sync.place",
        "launch",
        "tracking",
        "runs",
        "agreement",
        "models.batchnorm",
        "parallel",
        "data.prepare",
        "data.loader",
        "data.views",
        "checkpoint",
        "compare",
        "numbers",
        "audit.labels",
        "audit.duplicates",
    },
    {
        "sync.client",
        "sync.evaluation",
        "data.together",
        "mixing",
        "resume",
        "meter",
        "fit",
        "freezing",
        "features",
        "report.curves",
    },
    {
        "engine",
        "trained",
        "explain.chosen",
        "explain.annotations",
        "explain.neighbours",
        "explain.heatmaps",
    },
    {"job", "explain.pointing"},
    {"explain.gather", "report.pictures", "report.figures"},
    {"report.content", "sync.tables", "sync.artifacts"},
    {"report.page"},
    {
        "sync.sending",
        "train",
        "evaluate",
        "predict",
        "summary",
        "lr_find",
        "preview",
        "announce",
        "audit.run",
    },
    {"doctor.subject"},
    {"doctor.machine", "doctor.dataset", "doctor.model", "doctor.steps"},
    {"doctor.run"},
    {"workers"},
    {"studies.plan", "studies.training", "sweeps.parameter"},
    {"studies.results", "studies.runs", "sweeps.plan"},
    {"sweeps.trials"},
    {"sweeps.results"},
    {"sweeps.turn", "sweeps.figures"},
    {"sweeps.run"},
    {"studies.figures", "studies.batch_norm", "studies.parity"},
    {"studies.show"},
    {"studies.run"},
    {"cli", "__main__"},
]
# Within a layer, these may import others of it: each pair is one topic in two files.
BESIDE = {
    ("files", "errors"),
    ("terminal", "files"),
    ("records", "files"),
    ("records", "errors"),
    ("status", "files"),
    ("status", "locks"),
    ("status", "terminal"),
    ("status", "errors"),
    ("signals", "errors"),
    ("distributed", "errors"),
    ("distributed", "roll_call"),
    ("distributed", "signals"),
    ("distributed", "terminal"),
    ("data.planted", "seeding"),
    ("intervals", "seeding"),
    ("metrics", "intervals"),
    ("paired", "intervals"),
    ("audit.duplicates", "audit.labels"),
    ("distributed", "memory"),
    ("data.arrays", "data.store"),
    ("data.transforms", "data.store"),
    ("models.build", "models.weights"),
    ("models.build", "config_words"),
    ("config_file", "config_words"),
    ("optim", "models.build"),
    ("swats", "optim"),
    ("phases", "swats"),
    ("phases", "schedule"),
    ("checkpoint", "parallel"),
    ("train", "announce"),
    ("__main__", "cli"),
}


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "pipeline").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts)
        if not name.endswith("__init__"):
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or within a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name.removeprefix("pipeline.") for name in names if name.startswith("pipeline.")
    } & modules().keys()


LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def test_every_module_has_a_layer() -> None:
    assert modules().keys() == LAYER.keys()


@pytest.mark.parametrize("name", sorted(LAYER))
def test_a_file_imports_only_from_lower_layers(name: str) -> None:
    upwards = {
        other
        for other in imports(modules()[name])
        if LAYER[other] >= LAYER[name] and (name, other) not in BESIDE
    }
    assert not upwards


def test_files_keep_one_topic() -> None:
    assert [name for name, path in modules().items() if len(path.read_text().splitlines()) > 400] == []
