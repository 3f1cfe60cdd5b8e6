"""The hierarchy of a run, which its folder keeps: predicting needs no data set."""

from collections.abc import Sequence

from pipeline.common import console
from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.data import sample_table, taxonomy
from pipeline.data.prepare import Prepared
from pipeline.data.taxonomy import CLASS, Taxonomy
from pipeline.runs.directory import RunDirectory


def with_data(config: Config, data: Prepared) -> Taxonomy | None:
    """The hierarchy of the data, which is written into the run; else the one that the run has.

    Raises:
        DataError: the run's file is damaged.
    """
    run = RunDirectory(config.run_dir)
    if data.taxonomy is None:
        return _kept(run, sample_table.class_names(data.samples))
    data.taxonomy.write(run.taxonomy_file)
    return data.taxonomy


def without_data(config: Config, classes: Sequence[str]) -> Taxonomy | None:
    """The hierarchy that a run has; that of `data.taxonomy` where it has none.

    Args:
        classes: of the checkpoint, in the order of their labels.

    Raises:
        DataError: the file is missing or damaged, or of other classes.
    """
    run, given = RunDirectory(config.run_dir), config.data.taxonomy
    kept = _kept(run, classes)
    if kept is None:
        return None if given is None else taxonomy.read(given, classes)
    if given is not None and given.is_file() and taxonomy.read(given, classes) != kept:
        console.warn(
            f"{given}: differs from {run.taxonomy_file}, which is taken; `plumage eval` puts it into the run"
        )
    return kept


def check_rank(config: Config, hierarchy: Taxonomy | None, rank: str) -> None:
    """Raise a `ConfigError` unless answers can be given at a rank.

    Args:
        rank: "class", or a rank of the hierarchy.
    """
    if rank == CLASS or (hierarchy is not None and rank in hierarchy.ranks):
        return
    if hierarchy is None:
        raise ConfigError(
            f"--rank {rank}: {config.run_dir} has no hierarchy; give one with data.taxonomy=FILE (class, {rank}, ...)"
        )
    raise ConfigError(
        f"--rank {rank}: no such rank in the hierarchy of {config.run_dir}; its ranks are "
        f"{', '.join([CLASS, *hierarchy.ranks])}"
    )


def _kept(run: RunDirectory, classes: Sequence[str]) -> Taxonomy | None:
    path = run.taxonomy_file
    return taxonomy.read(path, classes) if path.is_file() else None
