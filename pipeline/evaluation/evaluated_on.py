"""eval/SPLIT/environment.json: on what a split was predicted, and the digests of what was read, for `verify`."""

from typing import Any

from pipeline.common import files
from pipeline.config.schema import Config
from pipeline.data import sample_table
from pipeline.data.prepare import Prepared, pictures_digest
from pipeline.distributed.process_group import Ranks
from pipeline.inference.load_model import LoadedModel
from pipeline.runs import environment
from pipeline.runs.directory import EvaluationDirectory, RunDirectory


def write(
    folder: EvaluationDirectory, config: Config, data: Prepared, model: LoadedModel, ranks: Ranks
) -> None:
    """Write the file. log: the size and SHA-256 that the training's log has now; it may grow, and not change."""
    log, described = RunDirectory(config.run_dir).log_file, None
    if log.is_file():
        described = {"bytes": log.stat().st_size, "sha256": files.digest_of_file(log)}
    about: dict[str, Any] = {
        **environment.describe(ranks.device),
        "precision": model.precision,
        "ranks": ranks.world_size,
        "batch_size": config.eval.batch_size,
        "samples": sample_table.digest(data.samples),
        "pictures": pictures_digest(config),
        "log": described,
    }
    files.write_json(folder.environment_file, about)
