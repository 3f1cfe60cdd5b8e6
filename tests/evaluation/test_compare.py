"""Comparison of runs: which belong together, what separates them, and words that match the statistics."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from pipeline.cli import main
from pipeline.common import files, tables
from pipeline.common.errors import UserError
from pipeline.config.load import dump_config, load_config
from pipeline.evaluation import metrics, statistics, verdict
from pipeline.evaluation.compare import compare_runs
from pipeline.runs import repeats

NAMES = ["wren", "gull", "crow", "owl"]
N = 400


def write_run(
    root: Path,
    name: str,
    right: np.ndarray,
    *,
    seed: int = 0,
    lr: float = 0.1,
    first_id: int = 1,
    **about: str,
) -> Path:
    """A run directory as `eval` leaves it; the images are right or wrong as told, labels go round."""
    n = len(right)
    labels = np.arange(n) % 4
    guess = np.where(right, labels, (labels + 1) % 4)
    samples = pd.DataFrame(
        {
            "id": np.arange(n) + first_id,
            "path": [f"{number}.jpg" for number in range(n)],
            "label": labels,
            "class_name": [NAMES[label] for label in labels],
        }
    )
    predicted = metrics.predictions_table(samples, 2 * np.eye(4, dtype=np.float32)[guess], NAMES)
    folder = root / name / "eval/test"
    tables.write_csv(predicted, folder / "predictions.csv")
    tables.write_csv(metrics.per_class(predicted, NAMES), folder / "per_class.csv")
    files.write_json(
        folder / "metrics.json",
        {"split": "test", "checkpoint": f"{name}/best.pt", "tta": "none", "top1": 0.5, **about},
    )
    files.write_text(
        root / name / "config.yaml",
        f"seed: {seed}\nrun: {{name: {name}}}\noptim: {{lr: {lr}}}\ndata: {{root: {name}}}\n",
    )
    return root / name


def flipped(right: np.ndarray, lost: int, won: int) -> np.ndarray:
    """The same, but so many of the right ones wrong and of the wrong ones right."""
    other = right.copy()
    other[np.flatnonzero(right)[:lost]] = False
    other[np.flatnonzero(~right)[:won]] = True
    return other


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).random(N) < 0.7


@pytest.mark.parametrize(
    ("lost", "won", "more"), [(10, 40, True), (40, 10, True), (10, 12, False), (0, 6, True), (0, 5, False)]
)
def test_the_words_are_those_of_mcnemars_test(
    tmp_path: Path, base: np.ndarray, lost: int, won: int, more: bool
) -> None:
    paths = [
        write_run(tmp_path, "one", base),
        write_run(tmp_path, "two", flipped(base, lost, won), lr=0.2),
    ]
    (comparison,) = compare_runs(paths, "test", None)["comparisons"]
    assert (comparison["images_better_in_a"], comparison["images_better_in_b"]) == (lost, won)
    assert comparison["p"] == pytest.approx(mcnemar([[0, lost], [won, 0]], exact=True).pvalue)
    assert comparison["difference"] == pytest.approx((won - lost) / N)
    assert comparison["low"] < comparison["difference"] < comparison["high"]
    better, worse = ("two", "one") if won > lost else ("one", "two")
    assert f"{better} is {abs(won - lost) / N * 100:.1f} points better than {worse}" in comparison["verdict"]
    inner, outer = sorted((abs(comparison["low"]), abs(comparison["high"])))
    assert not more or f"interval {100 * inner:+.1f} to {100 * outer:+.1f} points" in comparison["verdict"]
    assert ("not more than the noise of 400 images." in comparison["verdict"]) is not more
    assert (": more than the noise of 400 images." in comparison["verdict"]) is more
    assert ("only several seeds of both can tell" in comparison["verdict"]) is more


def test_seeds_of_one_configuration_become_mean_and_sd(tmp_path: Path, base: np.ndarray) -> None:
    one = [write_run(tmp_path, f"one{seed}", flipped(base, seed, 2), seed=seed) for seed in range(3)]
    two = [write_run(tmp_path, f"two{seed}", flipped(base, seed, 30), seed=seed, lr=0.2) for seed in range(2)]
    result = compare_runs([one[0], two[0], *one[1:], two[1]], "test", None)
    first, second = result["groups"]
    assert first["name"] == "one0 + one1 + one2"
    assert second["seeds"] == [0, 1]
    each = [base.mean() + (2 - seed) / N for seed in range(3)]
    assert first["top1"] == pytest.approx(each)
    assert (first["top1_mean"], first["top1_sd"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    (comparison,) = result["comparisons"]
    assert comparison["test"] == statistics.APART  # the first has a seed more
    assert comparison["p_images"] < comparison["p"] < 0.05
    assert comparison["low_over_seeds"] > 0
    assert comparison["verdict"].endswith(": more than the noise of seeds and 400 images.")


def test_a_difference_within_the_noise_of_seeds_is_none(tmp_path: Path, base: np.ndarray) -> None:
    """Each group has one good and one bad run: the images alone would call it a difference."""
    one = [write_run(tmp_path, f"one{seed}", flipped(base, 90 * seed, 0), seed=seed) for seed in range(2)]
    two = [
        write_run(tmp_path, f"two{seed}", flipped(base, 90 * seed, 40), seed=seed, lr=0.2)
        for seed in range(2)
    ]
    (comparison,) = compare_runs([*one, *two], "test", None)["comparisons"]
    assert comparison["p_images"] < 0.001
    assert comparison["test"] == statistics.PAIRED  # and both seeds gain the same
    assert comparison["p_seeds"] is None and comparison["p"] < 0.001
    two[1] = write_run(tmp_path, "two2", flipped(base, 180, 40), seed=2, lr=0.2)
    (comparison,) = compare_runs([*one, *two], "test", None)["comparisons"]
    assert comparison["test"] == statistics.APART
    assert comparison["p"] > 0.05 and comparison["low_over_seeds"] < 0 < comparison["high_over_seeds"]
    assert comparison["verdict"].endswith(": not more than the noise of seeds and 400 images.")


def test_a_difference_that_cannot_be_tested_is_said_to_be_so(tmp_path: Path) -> None:
    """Two seeds that gain every image; no p-value and no interval, neither 0 nor NaN."""
    paths = [
        write_run(tmp_path, f"{name}{seed}", np.full(3, right), seed=seed, lr=lr)
        for name, right, lr in (("one", False, 0.1), ("two", True, 0.2))
        for seed in range(2)
    ]
    result = compare_runs(paths, "test", tmp_path / "out")
    (comparison,) = result["comparisons"]
    assert [comparison[name] for name in ("p", "p_images", "p_seeds", "p_adjusted")] == [None] * 4
    assert [comparison[name] for name in ("low", "high", "low_over_seeds", "high_over_seeds")] == [None] * 4
    assert comparison["verdict"] == (
        "two0 + two1 is 100.0 points better than one0 + one1 (no interval, no p-value): whether that is more than noise "
        "cannot be tested; all images and runs say the same, which says nothing of others."
    )
    assert "NaN" not in (tmp_path / "out/comparison.json").read_text()
    assert "& none & none & none" in (tmp_path / "out/comparisons.tex").read_text()


def test_one_image_says_nothing_of_others(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, f"{right}{seed}", np.array([right]), seed=seed, lr=0.1 + right)
        for right in (False, True)
        for seed in range(2)
    ]
    (comparison,) = compare_runs(paths, "test", None)["comparisons"]
    assert comparison["p"] is None
    assert comparison["verdict"].endswith("cannot be tested; one image says nothing of others.")
    (comparison,) = compare_runs([paths[0], paths[2]], "test", None)["comparisons"]
    assert (comparison["p"], comparison["low"]) == (None, None)


def test_the_same_seeds_are_paired_in_whatever_order_and_however_they_are_named(
    tmp_path: Path, base: np.ndarray
) -> None:
    seeds = range(3)
    one = [write_run(tmp_path, f"one{seed}", flipped(base, 30 * seed, 0), seed=seed) for seed in seeds]
    two = [
        write_run(tmp_path, f"two{seed}", flipped(base, 30 * seed, 20 + seed), seed=seed, lr=0.2)
        for seed in seeds
    ]
    (paired,) = compare_runs([*one, *two], "test", None)["comparisons"]
    assert paired["test"] == statistics.PAIRED
    (turned,) = compare_runs([*one, *two[::-1]], "test", None)["comparisons"]
    numbers = ("p", "p_seeds", "difference", "low_over_seeds", "high_over_seeds", "test")
    assert [turned[name] for name in numbers] == [pytest.approx(paired[name]) for name in numbers]
    for folder, runs, order in (("a", one, (0, 1, 2)), ("b", two, (2, 0, 1))):
        repeats.write(tmp_path / folder, [runs[seed] for seed in order], order)
        for seed in order:
            (tmp_path / folder / runs[seed].name).symlink_to(runs[seed])
    (repeated,) = compare_runs([tmp_path / "a", tmp_path / "b"], "test", None)["comparisons"]
    assert [repeated[name] for name in numbers] == [pytest.approx(paired[name]) for name in numbers]
    other = write_run(tmp_path, "two7", flipped(base, 30, 20), seed=7, lr=0.2)
    (apart,) = compare_runs([*one, *two[:2], other], "test", None)["comparisons"]
    assert apart["test"] == statistics.APART
    assert apart["p"] > paired["p"]
    twice = write_run(tmp_path, "two0again", flipped(base, 30, 20), seed=0, lr=0.2)
    (apart,) = compare_runs([*one, *two[:2], twice], "test", None)["comparisons"]
    assert apart["test"] == statistics.APART


def test_one_run_against_several_has_the_seeds_of_one_side_and_a_caution(
    tmp_path: Path, base: np.ndarray
) -> None:
    one = write_run(tmp_path, "one", base)
    two = [write_run(tmp_path, f"two{s}", flipped(base, s, 60), seed=s, lr=0.2) for s in range(3)]
    (comparison,) = compare_runs([one, *two], "test", None)["comparisons"]
    assert comparison["p_seeds"] is None and comparison["p"] < 0.05
    assert "over images and the seeds of one side" in comparison["verdict"]
    assert "only several seeds of both can tell" in comparison["verdict"]


def test_two_seeds_of_one_configuration_are_compared_with_each_other(
    tmp_path: Path, base: np.ndarray
) -> None:
    paths = [write_run(tmp_path, "one", base), write_run(tmp_path, "two", flipped(base, 0, 20), seed=1)]
    result = compare_runs(paths, "test", None)
    assert len(result["groups"]) == 1
    (comparison,) = result["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("one", "two")
    assert "this is what a seed can do, not a better recipe" in comparison["verdict"]


def test_runs_of_one_seed_are_said_to_be_no_sample_of_seeds(
    tmp_path: Path, base: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_run(tmp_path, name, base, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 1))]
    compare_runs(paths[:2], "test", None)
    assert "a sample of seeds" not in capsys.readouterr().err
    compare_runs(paths, "test", None)
    assert (
        "a + b + c: seed 1 is that of several runs, which are not a sample of seeds"
        in capsys.readouterr().err
    )


def groups_of(tmp_path: Path, right: np.ndarray, *override: str) -> int:
    """The number of groups of two seeds, of which the second also has an override."""
    paths = [write_run(tmp_path, "one", right), write_run(tmp_path, "two", right)]
    for path, overrides in zip(paths, [["seed=0"], ["seed=1", *override]], strict=True):
        config = load_config(None, [f"run.name={path.name}", *overrides])
        files.write_text(path / "config.yaml", dump_config(config))
    return len(compare_runs(paths, "test", None)["groups"])


@pytest.mark.parametrize(
    "override",
    [
        "train.keep_checkpoints=3",
        "train.checkpoint_every_minutes=10",
        "train.checkpoint_every_steps=7",
        "train.resume=never",
        "train.device=cpu",
        "train.compile=true",
        "distributed.timeout_s=900",
        "distributed.data_timeout_minutes=5",
        "distributed.bucket_mb=50",
        "distributed.static_graph=true",
        "distributed.shard=full",
        "data.workers=2",
        "data.archive_md5=97eceeb196236b17998738112f37df78",
        "lr_find.steps=50",
        "summary.depth=3",
        "eval.batch_size=7",
        "report.gallery=3",
        "tracking.log_every_steps=1",
    ],
)
def test_seeds_that_differ_in_a_key_that_changes_no_number_are_one_recipe(
    tmp_path: Path, base: np.ndarray, override: str
) -> None:
    assert groups_of(tmp_path, base, override) == 1


@pytest.mark.parametrize(
    "override",
    [
        "model.weights=other.pth",
        "model.pretrained=false",
        "model.name=resnet18",
        "train.max_steps=7",
        "train.precision=fp32",
        "train.resume_force=true",
        "data.val_fraction=0.2",
        "data.store=jpeg",
        "distributed.compress=bf16",
        "optim.momentum=0.8",
        "schedule.final_factor=0.1",
    ],
)
def test_runs_that_differ_in_a_key_that_changes_numbers_are_two_recipes(
    tmp_path: Path, base: np.ndarray, override: str
) -> None:
    assert groups_of(tmp_path, base, override) == 2


def test_a_run_of_an_earlier_version_is_of_the_recipe_that_its_names_and_defaults_are_today(
    tmp_path: Path, base: np.ndarray
) -> None:
    paths = [write_run(tmp_path, "one", base), write_run(tmp_path, "two", base)]
    today = dump_config(load_config(None, ["seed=1", "schedule={name: plateau, min_factor: 0.1}"]))
    earlier = today.replace("min_factor", "least_factor").replace("  pad_px: 0\n", "")
    assert len(earlier) < len(today)
    for path, text in zip(paths, (earlier + "removed: 3\n", today + "removed: 3\n"), strict=True):
        files.write_text(path / "config.yaml", text)
    assert len(compare_runs(paths, "test", None)["groups"]) == 1


def test_the_order_of_the_stored_rows_does_not_matter(tmp_path: Path, base: np.ndarray) -> None:
    paths = [write_run(tmp_path, "one", base), write_run(tmp_path, "two", flipped(base, 3, 8), lr=0.2)]
    before = compare_runs(paths, "test", None)
    stored = paths[1] / "eval/test/predictions.csv"
    tables.write_csv(pd.read_csv(stored).sample(frac=1, random_state=0), stored)
    assert compare_runs(paths, "test", None) == before


def test_evaluations_of_other_views_are_not_one_group(tmp_path: Path, base: np.ndarray) -> None:
    paths = [write_run(tmp_path, "one", base), write_run(tmp_path, "two", base, seed=1, tta="flip")]
    result = compare_runs(paths, "test", None)
    assert len(result["groups"]) == 2
    assert "the same accuracy" in result["comparisons"][0]["verdict"]


def test_several_comparisons_are_adjusted_for_their_number(tmp_path: Path, base: np.ndarray) -> None:
    paths = [write_run(tmp_path, "base", base)]
    for number, won in enumerate((6, 12, 3)):
        paths.append(write_run(tmp_path, f"run{number}", flipped(base, 0, won), lr=0.2 + number))
    comparisons = compare_runs(paths, "test", None)["comparisons"]
    assert [one["p"] for one in comparisons] == pytest.approx([2 / 2**6, 2 / 2**12, 2 / 2**3])
    assert [one["p_adjusted"] for one in comparisons] == pytest.approx(
        [2 * 2 / 2**6, 3 * 2 / 2**12, 2 / 2**3]
    )
    assert "p = 0.062 adjusted by Holm): not more than the noise" in comparisons[0]["verdict"]  # 0.031 alone
    assert ": more than the noise" in comparisons[1]["verdict"]


def test_classes_and_changed_images_are_written_where_asked(
    tmp_path: Path, base: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    other = flipped(base, 3, 8)
    paths = [write_run(tmp_path / "runs", "one", base), write_run(tmp_path / "runs", "two", other, lr=0.2)]
    before = sorted((tmp_path / "runs").rglob("*"))
    out = tmp_path / "comparison"
    assert main.run(["compare", str(paths[0]), "--out", str(out), str(paths[1])]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert json.loads(line) == json.loads((out / "comparison.json").read_text())
    changed = pd.read_csv(out / "changed.csv")
    assert changed["id"].tolist() == (np.flatnonzero(base != other) + 1).tolist()
    assert (changed["right_b"] > changed["right_a"]).sum() == 8
    assert (changed["predicted_b"] == changed["class_name"]).tolist() == (changed["right_b"] == 1).tolist()
    assert (out / "comparisons.tex").is_file() and len(pd.read_csv(out / "comparisons.csv")) == 1
    classes = pd.read_csv(out / "classes.csv").set_index("class_name")
    for label, name in enumerate(NAMES):
        own = np.arange(N) % 4 == label
        assert classes.loc[name, "n"] == 100
        assert classes.loc[name, "difference"] == pytest.approx(other[own].mean() - base[own].mean())
        assert classes.loc[name, "won"] == (other & ~base)[own].sum()
        assert classes.loc[name, "lost"] == (base & ~other)[own].sum()
    assert "images better in b 8, in a 3" in said.err
    assert said.err.splitlines()[-1] == json.loads(line)["comparisons"][0]["verdict"]
    assert sorted((tmp_path / "runs").rglob("*")) == before


def test_other_images_are_refused(tmp_path: Path, base: np.ndarray) -> None:
    one = write_run(tmp_path, "one", base)
    more = write_run(tmp_path, "more", np.append(base, True))
    shifted = write_run(tmp_path, "shifted", base, first_id=5)
    with pytest.raises(UserError, match=r"image ids 401 \(1 in all\) of .*more.* are missing in .*one"):
        compare_runs([one, more], "test", None)
    with pytest.raises(UserError, match=r"image ids 1, 2, 3, 4 \(4 in all\)"):
        compare_runs([one, shifted], "test", None)
    other = write_run(tmp_path, "other", base)
    path = other / "eval/test/predictions.csv"
    path.write_text(path.read_text().replace("17.jpg", "another.jpg"))
    with pytest.raises(UserError, match=r"has other pictures or classes than .*, first for image id 18"):
        compare_runs([one, other], "test", None)


def test_too_few_runs_or_runs_that_are_none_are_refused(tmp_path: Path, base: np.ndarray) -> None:
    one = write_run(tmp_path, "one", base)
    for paths in ([one], [one, tmp_path / "one/../one"]):
        with pytest.raises(UserError, match="two or more different run directories"):
            compare_runs(paths, "test", None)
    with pytest.raises(UserError, match=r"nowhere/eval/test/per_class.csv: missing; run `eval`"):
        compare_runs([one, tmp_path / "nowhere"], "test", None)
    with pytest.raises(UserError, match=r"one/eval/val/per_class.csv: missing"):
        compare_runs([one, tmp_path / "nowhere"], "val", None)
    bare = write_run(tmp_path, "bare", base)
    (bare / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"bare/config.yaml: no such configuration file"):
        compare_runs([one, bare], "test", None)


def test_a_p_value_is_never_shown_as_zero() -> None:
    comparison = {
        "a": "one",
        "b": "two",
        "difference": 0.2,
        "low": 0.1,
        "high": 0.3,
        "p_images": 1e-9,
        "p_seeds": None,
        "p": 1e-9,
        "p_adjusted": 1e-9,
        "interval_over": "images",
    }
    assert "p < 0.001" in verdict.sentence(comparison, 100)


TREE = "class,family\nwren,songbirds\ngull,seabirds\ncrow,songbirds\nowl,owls\n"


def test_label_sets_and_ranks_that_all_runs_have_are_compared_too(tmp_path: Path) -> None:
    """Right or wrong go round in fours: a wrong wren is taken for a gull, a gull for a crow, a crow for an owl."""
    a = np.ones(N, bool)
    b = np.arange(N) % 4 != 1  # b takes each gull for a crow
    paths = [write_run(tmp_path, "a", a), write_run(tmp_path, "b", b, lr=0.2)]
    cleaned = pd.DataFrame(
        {"id": [2, 3], "label": [2, -1]}
    )  # the first gull is a crow; the first crow is left out
    for path in paths:
        tables.write_csv(cleaned, path / "eval/test/label_sets/cleaned.csv")
        files.write_text(path / "taxonomy.csv", TREE)
    rows = {row["measure"]: row for row in compare_runs(paths, "test", None)["otherwise"]}
    by = rows["top-1 by the labels of cleaned"]
    assert (by["n"], by["mean_a"]) == (N - 1, (N - 2) / (N - 1))
    assert by["mean_b"] == pytest.approx((3 * N / 4 - 1 + 1) / (N - 1))
    assert rows["right family"]["difference"] == pytest.approx(-0.25)  # a crow is no seabird
    height = rows["distance in the hierarchy (0 is best)"]
    assert (height["mean_a"], height["mean_b"]) == (
        0,
        0.5,
    )  # two of two ranks up, for a quarter of the images
    files.write_text(paths[1] / "taxonomy.csv", TREE.replace("owls", "raptors"))
    tables.write_csv(cleaned.assign(label=3), paths[1] / "eval/test/label_sets/cleaned.csv")
    assert compare_runs(paths, "test", None)["otherwise"] == []


def test_label_sets_of_several_seeds_are_judged_over_seeds_and_images(
    tmp_path: Path, base: np.ndarray
) -> None:
    """Nothing is relabelled: the numbers are those of the official labels."""
    paths = []
    for seed in range(2):
        paths.append(write_run(tmp_path, f"one{seed}", flipped(base, 9 * seed, 0), seed=seed))
        paths.append(write_run(tmp_path, f"two{seed}", flipped(base, 9 * seed, 15), seed=seed, lr=0.2))
    kept = pd.DataFrame({"id": [1], "label": [0]})
    for path in paths:
        tables.write_csv(kept, path / "eval/test/label_sets/kept.csv")
    result = compare_runs(paths, "test", None)
    (row,), (comparison,) = result["otherwise"], result["comparisons"]
    assert row["interval_over"] == "seeds and images"
    assert [row["low"], row["high"]] == pytest.approx(
        [comparison["low_over_seeds"], comparison["high_over_seeds"]]
    )


def test_a_mean_of_runs_is_not_a_run_of_their_recipe(tmp_path: Path, base: np.ndarray) -> None:
    paths = [write_run(tmp_path, name, base, seed=seed) for seed, name in enumerate(("one", "two", "mean"))]
    files.write_json(paths[2] / "environment.json", {"packages": {}, "soup": {"chosen": "uniform"}})
    groups = compare_runs(paths, "test", None)["groups"]
    assert [group["name"] for group in groups] == ["one + two", "mean"]
