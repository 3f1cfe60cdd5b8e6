"""`run` and `tracking`: the name of a run, and the logs that are written."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.types import Count, Section, UserPath

NAME_PATTERN = r"^[\w][\w.+-]*$"


class RunConfig(Section):
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """name of the run, stored in ROOT/NAME; null: the configuration file's name (under W&B's agent, with its id)"""
    root: UserPath = Path("runs")
    """folder of all runs"""


class TrackingConfig(Section):
    """Logs; log.jsonl is always written, the others are made from it."""

    log_every_steps: Count = 10
    """training steps between records in log.jsonl, in addition to one per epoch"""
    gradients_every_steps: Count | None = None
    """training steps between histograms of the gradients of all weights; null: none"""
    tensorboard: bool = False
    """event files in RUN/tensorboard"""
    csv: bool = False
    """tables in RUN/csv, one per kind of record"""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """W&B; online: sent during the run; offline: written to RUN/wandb; the verb `sync` does either later"""
    project: str = "plumage"
    """W&B project"""
    entity: str | None = None
    """W&B user or team; null: the default of the API key"""
    name: str | None = None
    """name of the run in W&B; null: run.name"""
    group: str | None = None
    """W&B group: runs that are shown together, such as the seeds of a recipe"""
    tags: tuple[str, ...] = ()
    """W&B tags"""
    notes: str | None = None
    """W&B notes: a longer description of the run"""
    log_checkpoint: bool = True
    """upload best.pt to W&B"""
    upload_wait_s: Annotated[float, Field(ge=0)] = 300
    """seconds that a finished run waits for the upload to W&B"""
