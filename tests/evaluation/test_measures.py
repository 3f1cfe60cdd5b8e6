"""Numbers over seeds and images together: the values are those of metrics.json, the spread what a crossed design has."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from sklearn.metrics import recall_score

from pipeline.evaluation import calibration, measures, metrics, statistics
from pipeline.evaluation.measures import Measure

NAMES = ["wren", "gull", "crow", "owl"]


def predicted(seed: int, images: int = 60) -> pd.DataFrame:
    """A predictions table of random logits; the labels are the same for every seed."""
    label = np.arange(images) % 4
    logits = np.random.default_rng(seed).normal(size=(images, 4)).astype(np.float32)
    logits[np.arange(images), label] += 1
    samples = pd.DataFrame(
        {"id": np.arange(images), "path": "x.jpg", "label": label, "class_name": np.array(NAMES)[label]}
    )
    return metrics.predictions_table(samples, logits, NAMES)


def test_the_values_are_those_of_one_evaluation() -> None:
    runs = [predicted(0), predicted(1)]
    values = measures.values(runs, measures.OF_EVERY_RUN)
    assert values.columns.tolist() == ["top1", "per_class_mean", "nll", "ece"]
    for row, table in zip(values.to_dict("records"), runs, strict=True):
        summary = metrics.summary(table)
        for name in ("top1", "per_class_mean", "nll"):
            assert row[name] == pytest.approx(summary[name])
        right = (table["label"] == table["predicted"]).to_numpy(float)
        bins = calibration.reliability(table["confidence"].to_numpy(), right)
        assert row["ece"] == pytest.approx(calibration.expected_error(bins))


def test_a_resample_is_the_number_of_the_images_that_it_drew() -> None:
    table = predicted(3)
    weights = next(statistics.resamples(len(table)))[:3]
    for row in weights:
        drawn = table.loc[np.repeat(np.arange(len(table)), row.astype(int))].reset_index(drop=True)
        right = (drawn["label"] == drawn["predicted"]).to_numpy(float)
        bins = calibration.reliability(drawn["confidence"].to_numpy(), right)
        expected = {
            "top1": right.mean(),
            "per_class_mean": recall_score(drawn["label"], drawn["predicted"], average="macro"),
            "nll": -np.log(drawn["probability"]).mean(),
            "ece": calibration.expected_error(bins),
        }
        got = {one.name: float(one.of(table)(row[None])[0]) for one in measures.OF_EVERY_RUN}
        assert got == pytest.approx(expected)


def test_an_image_that_does_not_count_changes_nothing() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0])
    weights = np.array([[1.0, 5.0, 1.0, 1.0], [0.0, 9.0, 2.0, 2.0], [0.0, 4.0, 0.0, 0.0]])
    assert measures.MeanOverImages(values)(weights) == pytest.approx([2 / 3, 0.5, np.nan], nan_ok=True)


def test_one_run_has_the_interval_over_images() -> None:
    table = predicted(0)
    (row,) = measures.over_seeds([table], measures.OF_EVERY_RUN[:1]).to_dict("records")
    summary = metrics.summary(table)
    assert np.isnan(row["sd"])
    expected = [summary[name] for name in ("top1", "top1_bootstrap_low", "top1_bootstrap_high")]
    assert [row["mean"], row["low"], row["high"]] == pytest.approx(expected)


def test_seeds_alone_and_images_alone_give_their_own_spread() -> None:
    """Runs that are right on all images or on none differ by the seed alone; equal runs differ by the images alone."""
    level = Measure("level", lambda table: measures.MeanOverImages(table["confidence"].to_numpy(float)))
    flat = [pd.DataFrame({"confidence": np.full(50, value)}) for value in (0.2, 0.6)]
    (row,) = measures.over_seeds(flat, [level]).to_dict("records")
    assert [row["mean"], row["sd"]] == pytest.approx([0.4, 0.4 / 2**0.5])
    assert [row["low"], row["high"]] == pytest.approx([0.0, 0.4 + t.ppf(0.975, 1) * 0.2])  # not below 0
    table = predicted(5)
    (alone,) = measures.over_seeds([table], [level]).to_dict("records")
    (three,) = measures.over_seeds([table] * 3, [level]).to_dict("records")
    width = alone["high"] - alone["low"]
    assert [three["low"], three["high"]] == pytest.approx([alone["low"], alone["high"]], abs=0.06 * width)


def test_a_mean_over_images_has_the_interval_of_the_crossed_model_and_another_number_the_bootstraps() -> None:
    runs = [predicted(seed) for seed in range(4)]
    rows = measures.over_seeds(runs, measures.OF_EVERY_RUN).set_index("measure")
    right = np.stack([table["label"] == table["predicted"] for table in runs]).astype(float)
    expected = statistics.over_seeds_and_images(right)
    assert (rows.loc["top1", "low"], rows.loc["top1", "high"]) == pytest.approx(expected.interval)
    # The classes have as many images each, so that this is the same number, found by drawing images.
    same = rows.loc["per_class_mean"]
    assert same["mean"] == pytest.approx(expected.value)
    width = same["high"] - same["low"]
    assert width == pytest.approx(np.ptp(expected.interval), rel=0.25)
    for name in ("nll", "ece"):
        low, mean, high = rows.loc[name, ["low", "mean", "high"]]
        assert 0 <= low < mean < high
        assert high - mean == pytest.approx(mean - low) or low == 0


def test_a_share_stays_within_0_and_1_and_is_never_sure() -> None:
    """Two seeds far apart; all right; and images that do not count for any run."""
    share = Measure("share", lambda table: measures.MeanOverImages(table["right"].to_numpy(float)))

    def interval(*runs: list[float]) -> list[float]:
        (row,) = measures.over_seeds([pd.DataFrame({"right": run}) for run in runs], [share]).to_dict(
            "records"
        )
        return [row["low"], row["high"]]

    assert interval([1.0, 1, 1, 0, 0, 0, 0, 0], [1.0] * 8) == [0.0, 1.0]
    assert interval([1.0] * 8, [1.0] * 8) == pytest.approx(statistics.wilson(8, 8))
    assert interval([0.0] * 8, [0.0] * 8) == pytest.approx(statistics.wilson(0, 8))
    assert interval([1.0], [0.0]) == [0.0, 1.0]
    runs = [[1.0, 0, 1, 1, 0, 1], [1.0, 1, 1, 0, 0, 1]]
    assert interval(*([*run, np.nan] for run in runs)) == pytest.approx(interval(*runs))


@pytest.mark.parametrize("count", [1, 2])
def test_one_image_tells_no_more_than_what_a_number_can_be(count: int) -> None:
    runs = [
        pd.DataFrame({"label": [0], "predicted": [0], "confidence": [share], "probability": [share]})
        for share in (0.9, 0.5)
    ]
    rows = measures.over_seeds(runs[:count], measures.OF_EVERY_RUN).set_index("measure")
    for name in ("top1", "per_class_mean", "ece"):
        assert rows.loc[name, ["low", "high"]].tolist() == [0, 1]
    assert rows.loc["nll", ["low", "high"]].isna().all()


def test_the_spread_of_seeds_and_images_is_that_of_a_crossed_design() -> None:
    """The variance of the mean is seeds' / S + images' / n, and of few seeds not (S - 1) / S of the first."""
    random = np.random.default_rng(1)
    seeds, images = 4, 400
    effect = np.array([-0.3, -0.1, 0.1, 0.3])
    values = effect[:, None] + random.normal(0, 2, images)  # no interaction: rows are parallel
    by_run = np.vstack([weights @ values.T / images for weights in statistics.resamples(images)])
    variance = effect.var(ddof=1) / seeds + values[0].var() / images
    assert statistics.over_resamples(by_run, values.mean(axis=1)).variance == pytest.approx(
        variance, rel=0.12
    )
