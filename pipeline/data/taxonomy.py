"""A hierarchy above the classes: which genus, family, ... each belongs to.

It is a table with the column `class` and a column for each rank, fine to coarse. The user gives one
(`data.taxonomy=FILE`), or a source brings its own (`Source.taxonomy`). Training does not depend on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import files, tables
from pipeline.common.errors import RUN_DATA, DataError
from pipeline.config.data import DataConfig
from pipeline.data import stages
from pipeline.data.sources.own_pictures import quoted, refuse, shown, twins, unwritable
from pipeline.data.stages import Removal, Stage
from pipeline.data.text_tables import plain, read_texts

CLASS = "class"
WHAT_TO_GIVE = "set data.taxonomy to the table of your hierarchy"
WHAT_NEXT = "give the column class, and a column for each rank from fine to coarse, such as genus and family"


@dataclass(frozen=True)
class Taxonomy:
    """The nodes that each of C classes belongs to.

    classes: in the order of their labels. nodes: by rank, fine to coarse, the node of each class; a node has one
    parent.
    """

    classes: tuple[str, ...]
    nodes: Mapping[str, tuple[str, ...]]

    @property
    def ranks(self) -> tuple[str, ...]:
        """The names of the ranks above the classes, fine to coarse."""
        return tuple(self.nodes)

    @property
    def digest(self) -> str:
        """A digest of classes, ranks and nodes."""
        return files.digest_of([self.classes, *self.nodes.items()])

    def names(self, rank: str) -> list[str]:
        """The nodes of a rank, sorted: [N]."""
        return self._indexed[rank][0]

    def node_of_class(self, rank: str) -> npt.NDArray[np.int64]:
        """The index into `names` of the node of each class: int64 [C]."""
        return self._indexed[rank][1]

    @cached_property
    def _indexed(self) -> dict[str, tuple[list[str], npt.NDArray[np.int64]]]:
        found = {}
        for rank, nodes in self.nodes.items():
            names, index = np.unique(np.array(nodes, object), return_inverse=True)
            found[rank] = names.tolist(), index.astype(np.int64)
        return found

    def sums(self, rank: str, probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The probability of each node, the sum over its classes: float64 [n, C] -> [n, N], in the order of `names`."""
        summed = np.zeros((len(self.names(rank)), len(probability)))
        np.add.at(summed, self.node_of_class(rank), probability.T)
        return summed.T

    def table(self) -> pd.DataFrame:
        """A row a class: class, and a column for each rank."""
        return pd.DataFrame({CLASS: self.classes, **self.nodes})

    def write(self, path: Path) -> None:
        """Write the table as CSV, whole or not at all; `read` reads it."""
        tables.write_csv(self.table(), path)

    def __str__(self) -> str:
        return ", ".join(f"{len(self.names(rank)):,} {rank}" for rank in self.ranks)


def read(path: Path, classes: Sequence[str]) -> Taxonomy:
    """The hierarchy of a CSV file (commas, semicolons or tabs).

    Raises:
        DataError: there is no such file, or it is no hierarchy of these classes, see `of_table`.
    """
    return of_table(read_texts(path, WHAT_TO_GIVE, WHAT_NEXT, (CLASS,)), classes, path)


def of_table(table: pd.DataFrame, classes: Sequence[str], where: Path) -> Taxonomy:
    """The hierarchy of a table of texts: the column `class`, and a column for each rank, fine to coarse.

    Args:
        classes: in the order of their labels; the rows may have another order.
        where: for the error.

    Raises:
        DataError: a class is missing, unknown or there twice, a node has no name or two parents, or there is no rank;
            one line for each kind of fault.
    """
    if CLASS not in table or len(table.columns) < 2:
        raise DataError(f"{where}: has the columns {shown(list(map(str, table.columns)))}; {WHAT_NEXT}")
    texts = table.astype(str).map(plain).rename(columns=plain)
    ranks = [name for name in texts.columns if name != CLASS]
    known = {plain(name): name for name in classes}
    refuse(where, [*_of_classes(texts[CLASS], known), *_of_ranks(texts, ranks), *_of_parents(texts, ranks)])
    rows = texts.set_index(CLASS).loc[list(known)]
    return Taxonomy(tuple(classes), {rank: tuple(rows[rank]) for rank in ranks})


def _of_classes(named: "pd.Series[str]", known: Mapping[str, str]) -> list[str]:
    kinds = (
        (named[named.duplicated()].unique().tolist(), "classes more than once", "give each class one row"),
        (
            sorted(set(named).difference(known)),
            f"no such class among the {len(known)} of the data set",
            "give the names of its classes, or leave these rows out",
        ),
        (
            [known[name] for name in known if name not in set(named)],
            "no row for these classes",
            "add one for each",
        ),
    )
    return [f"{what}: {shown(found)}; {next_}" for found, what, next_ in kinds if found]


def _of_ranks(texts: pd.DataFrame, ranks: Sequence[str]) -> list[str]:
    problems = []
    if "" in ranks:
        problems.append("a column without a name; name it after its rank, such as family")
    if alike := twins(ranks):
        problems.append(f"ranks that differ only in case: {shown(alike)}; give each rank one column")
    for rank in ranks:
        if nameless := texts.loc[texts[rank] == "", CLASS].tolist():
            problems.append(f"no {quoted(rank)} of {shown(nameless)}; name one for each class")
        if alike := twins(texts[rank]):
            problems.append(
                f"names in the column {quoted(rank)} that differ only in case: {shown(alike)}; spell each alike"
            )
        if odd := unwritable(texts[rank].unique()):
            problems.append(
                f"names in the column {quoted(rank)} with a carriage return or a zero byte: {shown(odd)}; take it out"
            )
    return problems


def _of_parents(texts: pd.DataFrame, ranks: Sequence[str]) -> list[str]:
    problems = []
    for fine, coarse in pairwise(ranks):
        parents = texts[[fine, coarse]].drop_duplicates()
        for node, of_node in parents[parents[fine].duplicated(keep=False)].groupby(fine):
            problems.append(
                f"{quoted(fine)} {quoted(str(node))} stands in more than one {quoted(coarse)}: "
                f"{shown(of_node[coarse])}; give it one, and the columns from fine to coarse"
            )
    return problems


def of(config: DataConfig, folder: Path, classes: Sequence[str]) -> Taxonomy | None:
    """The hierarchy of a data set: that of `data.taxonomy`, else that of its source; None without one.

    Args:
        folder: of what was prepared from the data set.

    Raises:
        DataError: see `read`; or the source's has changed since it was prepared.
    """
    if config.taxonomy is not None:
        return read(config.taxonomy, classes)
    own = _file(folder)
    if not own.is_file():
        return None
    if what := stages.changes(own):
        raise DataError(f"{own}: has changed since it was made: {what}; {RUN_DATA}")
    return read(own, classes)


def stages_of(
    config: DataConfig, own: pd.DataFrame | None, folder: Path, classes: Sequence[str], root: Path
) -> list[Stage | Removal]:
    """The stage that keeps a source's own hierarchy beside the prepared data, or takes away that of an earlier state.

    Args:
        own: as `Source.taxonomy` returns it.
        root: of the source, for the error.

    Raises:
        DataError: that of `data.taxonomy`, or the source's own, is no hierarchy of these classes.
    """
    if config.taxonomy is not None:
        read(config.taxonomy, classes)
    if own is None:
        return [Removal("taxonomy", _file(folder))]
    hierarchy = of_table(own, classes, root)
    inputs = {"taxonomy": hierarchy.digest}
    return [Stage("taxonomy", _file(folder), inputs, partial(Taxonomy.write, hierarchy), is_folder=False)]


def _file(folder: Path) -> Path:
    return folder / "hierarchy.csv"
