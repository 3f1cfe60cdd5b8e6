"""Findings of the doctor, and what its checks take: a context, the products of earlier checks, other ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.distributed.process_group import Ranks
from pipeline.doctor.context import CheckContext
from pipeline.doctor.products import BuiltModel
from pipeline.training import phases
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import build_state
from tests.helpers import tiny

Findings = dict[str, dict[str, Any]]
SINGLE = Ranks.single(torch.device("cpu"))


def states(findings: Findings, state: str) -> set[str]:
    """The names of the checks in a state."""
    return {name for name, finding in findings.items() if finding["state"] == state}


def context(tmp: Path, *overrides: str, ranks: Ranks = SINGLE) -> CheckContext:
    """Of the tiny job below a folder, in fp32."""
    return CheckContext(tiny.config(tmp, *overrides), ranks, "fp32", tmp)


def built_model(tmp: Path, *overrides: str) -> BuiltModel:
    """The tiny job's model with random weights, on one rank."""
    config = tiny.config(tmp, *overrides)
    setup = TrainingSetup(config, SINGLE)
    state, weights = build_state(setup, phases.first(config.optim), "fp32", pretrained=False)
    return BuiltModel(state, state, weights)


@dataclass(frozen=True)
class RanksWithAnswers(Ranks):
    """Rank 0, whose other ranks give these answers to every gather."""

    answers: tuple[Any, ...] = ()

    def all_gather(self, value: Any) -> list[Any]:
        return [value, *self.answers]


def ranks_with_answers(*answers: Any) -> RanksWithAnswers:
    return RanksWithAnswers(0, 1 + len(answers), 1, torch.device("cpu"), answers=answers)
