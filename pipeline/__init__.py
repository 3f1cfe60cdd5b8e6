"""Plumage: a fine-grained image classification pipeline.

A program says `import pipeline as plumage`. What it may use is in `__all__` (docs/api.md) and is loaded when it is
first used: the command line answers `--help` without torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.api.jobs import Evaluation, Training, evaluate, prepare, refit, train
    from pipeline.api.trained_model import Prediction, TrainedModel, load
    from pipeline.common.errors import Stopped, UserError
    from pipeline.config.schema import Config
    from pipeline.data.pictures import PictureError

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Evaluation",
    "PictureError",
    "Prediction",
    "Stopped",
    "TrainedModel",
    "Training",
    "UserError",
    "evaluate",
    "load",
    "prepare",
    "refit",
    "train",
]

if sys.platform == "win32":
    sys.stderr.write(
        "error: Windows has no file locks and signals of POSIX, which Plumage needs; run it in WSL\n"
    )
    raise SystemExit(2)

if not TYPE_CHECKING:  # a type checker takes any name for right where a module has a __getattr__
    _MODULES = {
        **dict.fromkeys(
            ["Evaluation", "Training", "evaluate", "prepare", "refit", "train"], "pipeline.api.jobs"
        ),
        **dict.fromkeys(["Prediction", "TrainedModel", "load"], "pipeline.api.trained_model"),
        **dict.fromkeys(["Stopped", "UserError"], "pipeline.common.errors"),
        "Config": "pipeline.config.schema",
        "PictureError": "pipeline.data.pictures",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__():
        return sorted({*globals(), *__all__})
