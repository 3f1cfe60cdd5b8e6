"""How the outputs of a run's model become answers: calibration, prior, rank, and what validation says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.answering import priors, run_set_rule, unknown_threshold
from pipeline.answering.answer_files import Answer, Cell, Judgement
from pipeline.answering.fitted_temperature import fitted_temperature
from pipeline.answering.picture_outputs import Outputs, Unreadable
from pipeline.answering.priors import Posterior
from pipeline.answering.unknown_threshold import NONE_OF_THESE, UnknownThreshold
from pipeline.config.schema import Config
from pipeline.data.taxonomy import CLASS, Taxonomy
from pipeline.evaluation import run_taxonomy, thresholds
from pipeline.evaluation.set_rule import SetRule
from pipeline.evaluation.thresholds import Floats, Level, Thresholds
from pipeline.inference.load_model import LoadedModel
from pipeline.runs.directory import RunDirectory


@dataclass(frozen=True)
class Answering:
    """What turns outputs into answers.

    classes: names [C], in the order of the logits. temperature: None where the probabilities are not calibrated.
    rank: that the answers name, "class" or one of the hierarchy. thresholds: None where no `eval` has chosen any for
    this rank, and with a prior, for which none holds. unknown: None where `unknown` has found no threshold of this
    checkpoint. set_rule: of prediction sets; None where no `eval` has calibrated one, at other ranks than the class,
    and with a prior, too. words: all of this in words.
    """

    classes: Sequence[str]
    posterior: Posterior
    temperature: float | None = None
    rank: str = CLASS
    taxonomy: Taxonomy | None = None
    thresholds: Thresholds | None = None
    unknown: UnknownThreshold | None = None
    set_rule: SetRule | None = None
    words: str = ""

    @classmethod
    def of_run(
        cls,
        config: Config,
        model: LoadedModel,
        classes: Sequence[str],
        prior: Path | None = None,
        rank: str = CLASS,
    ) -> "Answering":
        """As the evaluations of a run's checkpoint have left it; no data set is needed.

        Args:
            prior: a CSV file, see `priors.read_prior`.

        Raises:
            ConfigError: the run has no such rank.
            DataError: a file of the run, or that of the prior, is damaged.
        """
        temperature, calibrated = fitted_temperature(config, model)
        log_ratio, of_prior = priors.log_ratio_of_run(config, classes, prior)
        taxonomy = run_taxonomy.without_data(config, classes)
        run_taxonomy.check_rank(config, taxonomy, rank)
        posterior = Posterior(temperature or 1.0, log_ratio)
        origin = RunDirectory(config.run_dir), model.sha256, config.views
        chosen = None if prior else thresholds.of_run(*origin, posterior.temperature, taxonomy)
        if chosen is not None and rank not in chosen.ranks:
            chosen = None
        sure = "" if chosen is None else f"; sure from {chosen.ranks[rank].common}"
        unknown = unknown_threshold.of_run(*origin)
        rule = run_set_rule.of_run(*origin) if rank == CLASS and prior is None else None
        sets = "" if rule is None else f"; sets for {rule.coverage:.0%}"
        none = "" if unknown is None else f"; {NONE_OF_THESE} below {unknown.score.name} {unknown.lowest:.4g}"
        words = f"{calibrated}{of_prior}{sure}{none}{sets}"
        return cls(classes, posterior, temperature, rank, taxonomy, chosen, unknown, rule, words)

    @property
    def nodes(self) -> Sequence[str]:
        """What the answers name: the classes, or the nodes of the rank."""
        return self.classes if self.taxonomy is None or self.rank == CLASS else self.taxonomy.names(self.rank)

    @property
    def rolls_up(self) -> bool:
        """Whether an answer that is not sure becomes a node above its class."""
        return self.rank == CLASS and self.thresholds is not None and self.thresholds.roll_up is not None

    @property
    def columns(self) -> dict[str, type]:
        """The columns of a judgement, each with the type of its cells, which may be missing."""
        none: dict[str, type] = {} if self.unknown is None else {"none_of_these": bool}
        sets: dict[str, type] = {} if self.set_rule is None else {run_set_rule.COLUMN: list}
        if self.thresholds is None:
            return none | sets
        rolled: dict[str, type] = {"answer": str, "answer_rank": str, "answer_probability": float}
        return none | {"sure": bool} | (rolled if self.rolls_up else {}) | sets

    def label(self, one: Outputs) -> int:
        """The most likely class of a picture, whatever the rank."""
        return int(self.posterior.log_probabilities(one.logits[None])[0].argmax())

    def answer(
        self, one: Outputs | Unreadable, top: int, *, logits: bool = False, features: bool = False
    ) -> Answer:
        """What is said of a picture.

        Args:
            top: number of nodes that are named.
            logits, features: whether these are answered too.
        """
        if isinstance(one, Unreadable):
            return Answer(one.path, error=one.reason)
        log_probability = self.posterior.log_probabilities(one.logits[None])
        above = self.taxonomy if self.rolls_up or self.rank != CLASS else None
        levels = thresholds.levels(self.classes, above, np.exp(log_probability))
        level = next(level for level in levels if level.rank == self.rank)
        (score,), occurs = level.probability, self._occurs(log_probability)
        order = np.argsort(-(log_probability[0] if self.rank == CLASS else score), kind="stable")[:top]
        return Answer(
            one.path,
            tuple((level.names[node], float(score[node])) for node in order if occurs[node]),
            one.logits if logits else None,
            one.features if features else None,
            judgement=self._judge(one, levels, level),
        )

    def _occurs(self, log_probability: Floats) -> Floats:
        """Above 0 for nodes with a class that occurs: whose prior is not 0."""
        (occurs,) = np.isfinite(log_probability).astype(np.float64)
        if self.taxonomy is None or self.rank == CLASS:
            return np.asarray(occurs)
        (summed,) = self.taxonomy.sums(self.rank, occurs[None])
        return np.asarray(summed)

    def _judge(self, one: Outputs, levels: Sequence[Level], level: Level) -> Judgement | None:
        if self.unknown is None:
            return self._with_set(one, self._trust(levels, level))
        (refused,) = self.unknown.refuses(one.logits[None], one.features[None])
        trust = self._with_set(one, self._trust(levels, level, refused=bool(refused))) or Judgement("")
        words = NONE_OF_THESE if refused else trust.words
        return Judgement(words, {"none_of_these": bool(refused), **trust.cells})

    def _with_set(self, one: Outputs, trust: Judgement | None) -> Judgement | None:
        """A judgement with the prediction set of a picture: names of classes, the most probable one first."""
        if self.set_rule is None:
            return trust
        (inside,) = self.set_rule.sets(one.logits[None])
        order = np.argsort(-one.logits, kind="stable")
        names = [self.classes[label] for label in order if inside[label]]
        trust = trust or Judgement("")
        words = [trust.words] * bool(trust.words) + [f"one of {len(names)} with {self.set_rule.coverage:.0%}"]
        return Judgement(", ".join(words), {**trust.cells, run_set_rule.COLUMN: names})

    def _trust(self, levels: Sequence[Level], level: Level, *, refused: bool = False) -> Judgement | None:
        """Whether validation shows the answer to be sure; a picture that is refused has no sure one, at any rank."""
        if self.thresholds is None:
            return None
        name, probability = _best(level)
        sure = not refused and self.thresholds.ranks[self.rank].is_sure(name, probability)
        cells: dict[str, Cell] = {"sure": sure}
        if not self.rolls_up:
            return Judgement("sure" if sure else "unsure", cells)
        found = (CLASS, name, probability) if sure else None if refused else self._rolled_up(levels[1:])
        rank, node, its_probability = found or (None, None, None)
        cells |= {"answer": node, "answer_rank": rank, "answer_probability": its_probability}
        above = "unsure" if found is None else f"{rank} {node}, {its_probability:.3f}"
        return Judgement("sure" if sure else above, cells)

    def _rolled_up(self, above: Sequence[Level]) -> tuple[str, str, float] | None:
        """Rank, name and probability of the finest node that is probable enough; None: no node is."""
        assert self.thresholds is not None and self.thresholds.roll_up is not None
        for level in above:
            name, probability = _best(level)
            if probability >= self.thresholds.roll_up.probability:
                return level.rank, name, probability
        return None


def _best(level: Level) -> tuple[str, float]:
    """Name and probability of the most probable node of the one picture of a level."""
    return level.names[int(level.best[0])], float(level.greatest[0])
