"""A prior exchanges the shares of the classes in training for those here and now."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp, softmax

from pipeline.answering.priors import Posterior, log_ratio, read_prior, training_images
from pipeline.common.errors import DataError
from tests.helpers import tiny

NAMES = ["NA", "007", "Kr\u00e4he"]


def written(folder: Path, text: str) -> Path:
    path = folder / "prior.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_weights_are_scaled_to_a_sum_of_1_in_the_order_of_the_classes(tmp_path: Path) -> None:
    path = written(tmp_path, "weight,note,class\n6,x,Kra\u0308he\n0,,NA\n2,,007\n")
    assert read_prior(path, NAMES).tolist() == [0, 0.25, 0.75]
    path = written(tmp_path, "class,weight\nNA,1e308\n007,1e308\nKr\u00e4he,0\n")
    assert read_prior(path, NAMES).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no such file; give a CSV file with the columns class and weight"),
        ("class,share\nNA,1\n", "the columns ['weight'] are missing"),
        ("class,weight\nNA,often\n", "could not convert string to float"),
        (
            "class,weight\nNA,1\nCrow,1\n",
            "the model has no class Crow (1 in all); its 3 classes are NA, 007, ",
        ),
        ("class,weight\nNA,1\nNA,2\n007,1\nKr\u00e4he,1\n", "more than one weight for NA"),
        ("class,weight\nNA,1\n", "no weight for the classes 007, Kr\u00e4he (2 in all); add a row"),
        (
            "class,weight\nNA,1\n007,-1\nKr\u00e4he,\n",
            "the weight of 007, Kr\u00e4he (2 in all) is no number from 0",
        ),
        ("class,weight\nNA,inf\n007,1\nKr\u00e4he,1\n", "the weight of NA (1 in all) is no number from 0"),
        ("class,weight\nNA,0\n007,0\nKr\u00e4he,0\n", "all weights are 0"),
    ],
)
def test_a_prior_that_does_not_fit_is_one_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "prior.csv" if text is None else written(tmp_path, text)
    with pytest.raises(DataError, match=rf"^{path}: .*{re.escape(sentence)}"):
        read_prior(path, NAMES)


def test_the_posterior_is_the_one_of_bayes_rule() -> None:
    """Two classes of known densities: p(x|a) = 0.2, p(x|b) = 0.6; 3 in 4 of training are a, 1 in 10 here."""
    logits = np.log([[0.75 * 0.2, 0.25 * 0.6]]).astype(np.float32)
    posterior = Posterior(1, log_ratio(np.array([0.1, 0.9]), np.array([30, 10])))
    here = np.array([0.1 * 0.2, 0.9 * 0.6])
    assert np.exp(posterior.log_probabilities(logits))[0] == pytest.approx(here / here.sum(), abs=1e-7)


def test_the_prior_of_training_changes_nothing_and_a_weight_of_0_leaves_no_probability() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    images = np.array([10, 20, 70])
    same = Posterior(2, log_ratio(images / 100, images)).log_probabilities(logits)
    assert np.exp(same) == pytest.approx(softmax(logits.astype(float) / 2, axis=1))
    without = Posterior(1, log_ratio(np.array([0.5, 0, 0.5]), images)).log_probabilities(logits)
    assert (without[:, 1] == -np.inf).all() and logsumexp(without, axis=1) == pytest.approx(np.zeros(5))


def test_a_class_without_a_training_image_counts_as_if_it_had_one() -> None:
    ratio = log_ratio(np.full(2, 0.5), np.array([9, 0]))
    assert ratio == pytest.approx(np.log([0.5 / 0.9, 0.5 / 0.1]))


def test_training_images_are_those_that_an_evaluation_counted(tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    assert training_images(config, NAMES) is None
    table = pd.DataFrame({"label": range(3), "class_name": NAMES, "train_images": [3, 0, 5]})
    folder = tmp_path / "runs/tiny/eval/val"
    folder.mkdir(parents=True)
    table.to_csv(folder / "per_class.csv", index=False)
    counted = training_images(config, NAMES)
    assert counted is not None and counted.tolist() == [3, 0, 5]
    balanced = training_images(tiny.config(tmp_path, "data.sampler=class_balanced"), NAMES)
    assert balanced is not None and balanced.tolist() == [1, 1, 1]
    with pytest.raises(DataError, match=r"val/per_class.csv: of other classes than the checkpoint"):
        training_images(config, NAMES[::-1])
