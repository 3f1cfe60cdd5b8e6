"""`run` and `tracking`: the name of a run, and where its numbers go."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.types import Count, Section


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")] | None = None
    """the run lives in ROOT/NAME; null: the name of the configuration file; under W&B's agent, with the run's id"""
    root: Path = Path("runs")
    """folder of all runs"""


class TrackingConfig(Section):
    """log.jsonl is always written; all else is made from it."""

    log_every_steps: Count = 10
    """a record of log.jsonl every so many training steps, besides one an epoch"""
    gradients_every_steps: Count | None = None
    """histograms of each weight's gradient every so many steps; null: none"""
    tensorboard: bool = False
    """event files in RUN/tensorboard"""
    csv: bool = False
    """tables in RUN/csv, one a kind of record"""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """online: while the run goes on; offline: a folder in RUN/wandb; the verb sync does either later"""
    project: str = "plumage"
    entity: str | None = None
    """W&B user or team; null: the key's own"""
    name: str | None = None
    """of the run in W&B; null: run.name"""
    group: str | None = None
    """runs of one group are shown together, such as the seeds of a recipe"""
    tags: tuple[str, ...] = ()
    notes: str | None = None
    log_checkpoint: bool = True
    """best.pt goes to W&B too"""
    upload_wait_s: Annotated[float, Field(ge=0)] = 300
    """how long the end of a run waits for W&B to take the rest"""
