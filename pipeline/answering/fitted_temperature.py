"""The temperature that an evaluation of a run's checkpoint has fitted."""

from typing import Annotated

from pydantic import BaseModel, Field

from pipeline.common import files
from pipeline.config.schema import Config
from pipeline.inference.load_model import LoadedModel
from pipeline.runs.directory import RunDirectory
from pipeline.runs.predictions import AGAIN, views


class _Fitted(BaseModel):
    """What metrics.json says of a temperature."""

    checkpoint_sha256: str = ""
    tta: str = "none"
    image_px: int | None = None
    resize_px: int | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    temperature_at_bound: bool = False


def fitted_temperature(config: Config, model: LoadedModel) -> tuple[float | None, str]:
    """The temperature that an evaluation of this checkpoint fitted on validation, and that in words; None without."""
    run, at_bound = RunDirectory(config.run_dir), False
    for split in ("test", "train"):
        path = run.evaluation(split).metrics_file
        if not path.is_file():
            continue
        fitted = files.read_json(path, _Fitted, AGAIN)
        if (
            fitted.temperature is None
            or fitted.checkpoint_sha256 != model.sha256
            or views(fitted.model_dump()) != config.views
        ):
            continue
        if not fitted.temperature_at_bound:
            return fitted.temperature, f"calibrated, temperature {fitted.temperature:.3f} of {path}"
        at_bound = True
    if at_bound:
        return None, "not calibrated, as validation does not determine a temperature"
    return (
        None,
        f"not calibrated, as no `eval` of it with eval.tta={config.views} has fitted a temperature",
    )
