"""Run checks in order: each takes products of earlier ones, and may return one next to its finding."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, get_args

from pipeline.common.errors import Stopped, UserError, refusals_as_sentences
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, of_error, worst_of_ranks
from pipeline.models.option_errors import quoted
from pipeline.training.preflight import training_memory_errors


@dataclass(frozen=True)
class Check:
    """A named check. The signature of `run` says what it takes and returns:

    `run(context, *products) -> Finding`, or `-> tuple[Finding, Product]`. A product is known by its type. The check
    is skipped when a product is missing, unless that parameter has a default.
    """

    name: str
    run: Callable[..., Finding | tuple[Finding, Any]]
    is_slow: bool = False
    """left out by --quick"""

    @property
    def inputs(self) -> list[Parameter]:
        """The products that it takes."""
        _context, *products = signature(self.run).parameters.values()
        return products

    @property
    def output(self) -> tuple[Any, ...]:
        """The type of the product that it returns; empty when it returns a finding alone."""
        return get_args(signature(self.run).return_annotation)[1:]


def run_checks(
    checks: Sequence[Check], context: CheckContext, *, quick: bool
) -> Iterator[tuple[str, Finding]]:
    """Yield the name and the finding of each check, the same finding on all ranks.

    What a check raises is its no-go. On several ranks a bug ends all of them.
    """
    products: list[Any] = []
    causes: dict[str, set[str]] = {}  # of a skipped check: all checks whose products it, or they, lacked
    for check in checks:
        if quick and check.is_slow:
            yield check.name, Finding("not applicable", "left out by --quick")
            continue
        taken = {
            parameter.name: product
            for parameter in check.inputs
            for product in products
            if isinstance(product, parameter.annotation)
        }
        required = [p for p in check.inputs if p.default is Parameter.empty and p.name not in taken]
        if missing := [origin(checks, parameter).name for parameter in required]:
            farther = set().union(*(causes.get(name, set()) for name in missing))
            causes[check.name] = farther | set(missing)
            nearest = [name for name in missing if name not in farther]
            yield check.name, Finding("not applicable", f"not looked at, because of {' and '.join(nearest)}")
            continue
        finding, product = _run(check, context, taken)
        yield check.name, worst_of_ranks(finding, context.ranks)
        if check.output and all(context.ranks.all_gather(product is not None)):
            products.append(product)


def origin(checks: Sequence[Check], parameter: Parameter) -> Check:
    """The check that returns the product that a parameter takes."""
    possible = [check for check in checks if issubclass(parameter.annotation, check.output)]
    return next((check for check in possible if parameter.annotation in check.output), possible[0])


def _run(check: Check, context: CheckContext, products: dict[str, Any]) -> tuple[Finding, Any]:
    try:
        with refusals_as_sentences(), training_memory_errors(context.config):
            returned = check.run(context, **products)
    except UserError as error:
        returned = of_error(error)
    except Stopped:
        raise
    except Exception as error:
        if context.ranks.world_size > 1:  # the others may be waiting for this rank within the check
            raise
        traceback.print_exc()
        returned = Finding("no-go", f"a bug ({quoted(error)})", "report it with the traceback above")
    return returned if isinstance(returned, tuple) else (returned, None)
