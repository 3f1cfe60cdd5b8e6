"""From which probability on an answer is sure: checked against a search by hand and scipy's exact binomial test."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.common.errors import DataError
from pipeline.data.taxonomy import Taxonomy
from pipeline.evaluation import thresholds
from pipeline.evaluation.thresholds import FEWEST_IMAGES, PROMISE, Level, Threshold, of_level, smallest
from pipeline.runs.directory import RunDirectory
from pipeline.runs.predictions import Validation

ORIGIN = {"checkpoint_sha256": "abc", "tta": "none", "temperature": 2.0, "temperature_at_bound": False}


def of_confidences(confidence: list[float], wrong: Collection[int] = ()) -> Threshold:
    right = np.array([number not in wrong for number in range(len(confidence))], np.bool_)
    return smallest(np.array(confidence)[:, None], right[:, None])


def test_59_right_answers_show_it_and_58_do_not() -> None:
    assert FEWEST_IMAGES == 59
    falling = np.linspace(0.99, 0.4, 59).tolist()
    assert of_confidences(falling) == Threshold(0.4, 59, 59, 59, shown=True)
    not_shown = of_confidences(falling[:58])
    assert (not_shown.probability, not_shown.shown) == (PROMISE, False)
    assert not_shown.answered == not_shown.right == sum(value >= PROMISE for value in falling[:58])


def test_three_images_never_show_it_and_none_at_all_is_no_error() -> None:
    assert of_confidences([1.0, 1.0, 1.0]) == Threshold(PROMISE, 3, 3, 3, shown=False)
    nothing = smallest(np.empty((0, 2)), np.empty((0, 2), np.bool_))
    assert nothing == Threshold(PROMISE, 0, 0, 0, shown=False)


def test_a_wrong_answer_among_many_needs_more_right_ones() -> None:
    assert of_confidences([0.9] * 93, {20}) == Threshold(0.9, 93, 93, 92, shown=True)
    assert not of_confidences([0.9] * 92, {20}).shown
    falling = np.linspace(0.99, 0.4, 93).tolist()
    assert 0.54 < of_confidences(falling, {70}).probability < 0.56, "the walk ends at the wrong answer"


@pytest.mark.parametrize("ranks", [1, 3])
def test_it_is_what_a_walk_down_the_grid_finds_that_ends_at_the_first_failure(ranks: int) -> None:
    random = np.random.default_rng(ranks)
    probability = random.random((400, ranks)).round(3)
    right = random.random((400, ranks)) < 0.9 + 0.15 * probability
    shown = []
    for percent in range(99, 0, -1):
        t = percent / 100
        firsts = [
            next((right[n, r] for r in range(ranks) if probability[n, r] >= t), None) for n in range(400)
        ]
        answers = [is_right for is_right in firsts if is_right is not None]
        k, n = sum(map(bool, answers)), len(answers)
        if n < FEWEST_IMAGES:
            continue
        if binomtest(k, n, PROMISE, alternative="greater").pvalue > 0.05:
            break
        shown.append(Threshold(t, 400, n, k, shown=True))
    assert len(shown) > 2 and t > 0.02, "the example has something to choose from, and a failure"
    assert smallest(probability, right) == shown[-1]


def test_what_passes_below_the_first_failure_is_not_taken() -> None:
    """Of the 100 most confident answers 10 are wrong, and none of the 900 others: all 1,000 pass, and 100 do not."""
    confidence = np.repeat([0.9, 0.5], [100, 900])
    right = np.arange(1000) >= 10
    assert binomtest(990, 1000, PROMISE, alternative="greater").pvalue < 1e-6
    found = smallest(confidence[:, None], right[:, None])
    assert found == Threshold(PROMISE, 1000, 0, 0, shown=False)
    assert smallest(confidence[:, None], right[:, None], 0.97).probability == 0.97


@pytest.mark.parametrize("n", [599, 5000])
def test_a_promise_that_is_not_so_is_seldom_shown_however_many_probabilities_are_tested(n: int) -> None:
    """Of the answers of every confidence 94.9 % are right; taking the lowest that passes showed it in 17 and 27 %."""
    random, draws = np.random.default_rng(n), 300
    shown = sum(smallest(random.random((n, 1)), random.random((n, 1)) < 0.949).shown for _ in range(draws))
    noise = 3 * (thresholds.RISK * (1 - thresholds.RISK) / draws) ** 0.5
    assert shown / draws <= thresholds.RISK + noise


def test_a_class_with_enough_images_has_a_threshold_of_its_own() -> None:
    names = ["hard", "easy", "rare"]
    n = {"hard": 200, "easy": 120, "rare": FEWEST_IMAGES - 1}
    best = np.repeat([0, 1, 2], list(n.values()))
    confidence = np.concatenate([np.linspace(0.4, 0.999, count) for count in n.values()])
    probability = np.full((len(best), 3), 0.0)
    probability[np.arange(len(best)), best] = confidence
    label = best.copy()
    label[(best == 0) & (confidence < 0.7)] = 2  # what looks hard is often rare
    found = of_level(Level("class", names, probability), label)
    assert set(found.own) == {"hard", "easy"}
    assert found.own["easy"].probability == pytest.approx(0.4) and found.own["easy"].shown
    assert found.own["hard"].shown and found.own["hard"].probability > found.common.probability > 0.4
    assert found.is_sure("easy", 0.41) and not found.is_sure("hard", 0.41)
    assert found.is_sure("rare", found.common.probability)
    assert not found.is_sure("rare", found.common.probability - 1e-9)


def test_a_class_that_is_known_to_be_hard_is_not_sure_at_a_low_common_threshold() -> None:
    best = np.repeat([0, 1], [60, 900])
    probability = np.full((960, 2), 0.0)
    probability[np.arange(960), best] = np.concatenate(
        [np.linspace(0.5, 0.7, 60), np.linspace(0.5, 0.9, 900)]
    )
    label = best.copy()
    label[:60:3] = 1
    found = of_level(Level("class", ["hard", "easy"], probability), label)
    assert found.common.shown and found.common.probability < PROMISE
    assert not found.own["hard"].shown and found.own["hard"].probability == PROMISE


def validation(n: int, doubtful: int) -> tuple[Validation, Taxonomy]:
    """Four classes in two genera; the first images are certain and right, the rest split 3 : 2 within the genus."""
    random = np.random.default_rng(5)
    label = random.integers(0, 4, n)
    probability = np.full((n, 4), 1e-4)
    probability[np.arange(n), label] = 0.999
    sibling = label ^ 1
    last = np.arange(n - doubtful, n)
    named = np.where(random.random(doubtful) < 0.6, label[last], sibling[last])
    probability[last, named] = 0.595
    probability[last, named ^ 1] = 0.4048
    logits = np.log(probability) * 2.0
    taxonomy = Taxonomy(("a", "b", "c", "d"), {"genus": ("A", "A", "B", "B")})
    return Validation(logits.astype(np.float32), label.astype(np.int64)), taxonomy


def test_the_roll_up_is_chosen_on_the_images_whose_class_is_not_sure() -> None:
    stored, taxonomy = validation(300, doubtful=80)
    ranks, roll_up = thresholds.choose(stored, 2.0, taxonomy.classes, taxonomy)
    assert list(ranks) == ["class", "genus"]
    assert 0.595 < ranks["class"].common.probability < 1
    assert roll_up is not None and roll_up.shown
    assert (roll_up.n, roll_up.answered, roll_up.right) == (80, 80, 80)
    few, taxonomy = validation(300, doubtful=40)
    _, roll_up = thresholds.choose(few, 2.0, taxonomy.classes, taxonomy)
    assert roll_up is not None and (roll_up.probability, roll_up.n, roll_up.shown) == (PROMISE, 40, False)
    assert thresholds.choose(stored, 2.0, taxonomy.classes, None)[1] is None


def test_the_file_counts_for_its_checkpoint_views_temperature_and_hierarchy(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    stored, taxonomy = validation(300, doubtful=80)
    folder = run.evaluation("test")
    thresholds.write(folder, stored, ORIGIN, taxonomy.classes, taxonomy)

    def found(sha256: str = "abc", tta: str = "none", temperature: float = 2.0, tree: Any = taxonomy) -> Any:
        return thresholds.of_run(run, sha256, tta, temperature, tree)

    ranks, roll_up = thresholds.choose(stored, 2.0, taxonomy.classes, taxonomy)
    assert found().ranks == ranks and found().roll_up == roll_up
    assert found("of another") is None and found(tta="flip") is None and found(temperature=1.0) is None
    other = Taxonomy(taxonomy.classes, {"genus": ("A", "A", "B", "A")})
    for tree in (None, other):
        assert list(found(tree=tree).ranks) == ["class"] and found(tree=tree).roll_up is None
    thresholds.write(folder, None, ORIGIN, taxonomy.classes, taxonomy)
    assert found() is None
    bound = {**ORIGIN, "temperature_at_bound": True}
    thresholds.write(folder, stored, bound, taxonomy.classes, None)
    assert found(temperature=1.0) is not None
    folder.thresholds_file.write_text(json.dumps({"promise": 0.95}))
    with pytest.raises(DataError, match=r"thresholds\.json: damaged"):
        found()
