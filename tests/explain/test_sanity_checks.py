"""The object alone, the background alone, and heat maps of random weights: by hand, and in a report."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.data import prepare
from pipeline.data.transforms import CentreCrop
from pipeline.distributed import process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation.statistics import wilson
from pipeline.explain import annotations, object_alone, randomised
from pipeline.inference.load_model import LoadedModel
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from tests.helpers import tiny

ALONE = Ranks.single(torch.device("cpu"))


def test_a_pixel_is_inside_where_its_centre_is() -> None:
    boxes = np.array([[1.0, 0.4, 3.0, 2.6], [0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    inside = object_alone.inside_boxes(boxes, 4)[:, 0].int()
    assert inside[0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert inside[1].sum() == 16
    assert inside[2].sum() == 0


class Remembers(nn.Module):
    """Keeps the pictures that it is shown, and names class 0, 1, 2, 0, ... view by view."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([124.4, 116.0, 103.6]).view(1, 3, 1, 1)
        self.seen: list[Tensor] = []
        self.timed: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self.timed.add(torch.backends.cudnn.benchmark)
        return torch.eye(3)[(len(self.seen) - 1) % 3].expand(len(images), 3)


def test_the_model_is_shown_the_crop_the_box_and_the_background(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(tmp_path, "eval.batch_size=2", "data.workers=0")
    data = prepare.load(config)
    rows = np.array([4, 30, 50])
    boxes = annotations.boxes_in_crop(config.data, data.samples.iloc[rows])
    model = Remembers()
    loaded = cast(LoadedModel, SimpleNamespace(model=model, precision="fp32"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    named = object_alone.answers(config, data, loaded, rows, boxes, ALONE)
    assert model.timed == {False}
    assert named.tolist() == [[0, 1, 2]] * 3
    whole, box, background = (torch.cat([model.seen[i], model.seen[i + 3]]) for i in range(3))
    crop = CentreCrop(config.data)
    for position, row in enumerate(rows):
        picture = torch.from_numpy(crop(data.store[row], 0, int(row)).copy()).permute(2, 0, 1)
        assert torch.equal(whole[position], picture)
        x0, y0, x1, y1 = (round(value) for value in boxes[position] - 1e-6)
        mean = torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1)
        only_box, only_background = mean.expand(3, 32, 32).clone(), picture.clone()
        only_box[:, y0:y1, x0:x1] = picture[:, y0:y1, x0:x1]
        only_background[:, y0:y1, x0:x1] = mean
        assert torch.equal(box[position], only_box)
        assert torch.equal(background[position], only_background)
    assert (box != whole).any() and (background != whole).any()


def test_accuracies_and_their_paired_differences_by_hand() -> None:
    images = pd.DataFrame(
        {
            "label": [0, 1, 2, 3] * 10,
            "box_share": [0.5, 0.25, 0.5, 0.75] * 10,
            "whole": [0, 1, 2, 0] * 10,
            "box": [0, 1, 0, 3] * 10,
            "background": [0, 0, 0, 0] * 10,
        }
    )
    table = object_alone.accuracies(images).set_index("view")
    assert table["correct"].tolist() == [30, 30, 10]
    assert table["top1"].tolist() == [0.75, 0.75, 0.25]
    assert table.loc["background alone", ["top1_low", "top1_high"]].tolist() == list(wilson(10, 40))
    assert table["difference"].tolist() == [0, 0, -0.5]
    assert table.loc["whole picture", ["difference_low", "difference_high"]].tolist() == [0, 0]
    low, high = table.loc["box alone", ["difference_low", "difference_high"]]
    # Of 40 differences a quarter is 1, a quarter -1: their mean has the deviation sqrt(0.5 / 40).
    assert (low, high) == (pytest.approx(-1.96 * 0.1118, abs=0.03), pytest.approx(1.96 * 0.1118, abs=0.03))
    assert table["box_share"].tolist() == [0.5] * 3


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(name="test_resnet", pretrained=False, mid_level_head=True), 4)[0].eval()


def test_weights_become_random_from_the_head_down_and_the_model_itself_stays(model: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed: dict[str, set[str]] = {}
    for name, network in randomised.cascade(model, 0):
        state = network.state_dict()
        changed[name] = {key for key, value in before.items() if not torch.equal(state[key], value)}
    names = list(changed)
    assert names[:3] == ["none", "head", "layer4.0"]
    assert changed["none"] == set()
    assert {key.partition(".")[0] for key in changed["head"]} == {"backbone", "mid_head"}
    assert {key for key in changed["head"] if key.startswith("backbone")} == {
        "backbone.fc.weight",
        "backbone.fc.bias",
    }
    for above, below in pairwise(names):
        assert changed[above] < changed[below]
    matrices = {key for key, value in before.items() if value.ndim > 1}
    assert matrices <= changed[names[-1]]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("poolformer_s12", ["stages", "stem"]),  # timm does not group it
        ("convnext_atto", ["head.norm", "stages.3", "stages.2", "stages.1", "stages.0.blocks", "stem"]),
    ],
)
def test_no_matrix_of_a_network_is_left_as_it_was(name: str, steps: list[str]) -> None:
    network = build_model(ModelConfig(name=name, pretrained=False), 3)[0]
    before = {key: value.clone() for key, value in network.named_parameters() if value.ndim > 1}
    drawn = [(last, after) for last, after in randomised.cascade(network, 0)]
    names, after = [last for last, _ in drawn], dict(drawn[-1][1].named_parameters())
    assert names[:2] == ["none", "head"]
    assert [each for each in names[2:] if each in steps] == steps
    assert not [key for key, value in before.items() if torch.equal(after[key], value)]


def test_the_same_seed_draws_the_same_weights_and_the_global_stream_is_left_alone(model: Classifier) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, again, other = (list(randomised.cascade(model, seed))[-1][1].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert not torch.equal(one["backbone.conv1.0.weight"], other["backbone.conv1.0.weight"])


def test_no_gpu_is_asked_for_its_stream_by_a_model_on_the_cpu(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several GPUs torch would make a context on each, and say so."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert len(list(randomised.cascade(model, 0))) > 2


def test_a_drawn_layer_keeps_the_variance_and_a_norm_does_nothing() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Linear(512, 400), nn.BatchNorm2d(3)
    norm.running_mean, norm.weight.data = torch.ones(3), torch.full((3,), 5.0)
    for module in (layer, norm):
        randomised.draw_anew(module)
    assert layer.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert layer.bias.abs().max().item() == 0
    assert (norm.weight.tolist(), norm.running_mean.tolist()) == ([1, 1, 1], [0, 0, 0])


def test_hits_chance_and_similarity_by_hand() -> None:
    trained = np.zeros((4, 2, 2))
    trained[0, 0, 0] = trained[1, 0, 1] = trained[2, 1, 0] = trained[3, 1, 1] = 1
    boxes = np.array([[0.0, 0, 40, 40], [40.0, 0, 80, 40], [0.0, 40, 40, 80], [40.0, 40, 80, 80]])
    row = randomised.summary("none", trained, trained, boxes, 80)
    assert (row["n"], row["hits"], row["rate"], row["empty"]) == (4, 4, 1.0, 0)
    assert (row["rate_low"], row["rate_high"]) == wilson(4, 4)
    assert (row["chance"], row["elsewhere"], row["similarity"]) == (0.25, 0.0, pytest.approx(1))
    corner = np.zeros((4, 2, 2))
    corner[:3, 0, 0] = 1  # always the upper left, and one map is empty
    row = randomised.summary("all", corner, trained, boxes, 80)
    assert (row["n"], row["hits"], row["empty"]) == (3, 1, 1)
    assert row["elsewhere"] == pytest.approx(
        2 / 9
    )  # of 3 x 3 other boxes, pictures 2 and 3 have peaks in the first
    # Ranks (4, 2, 2, 2) against (2, 4, 2, 2) correlate by -1/3: 1, -1/3, -1/3 on average.
    assert row["similarity"] == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("rate_low", "n", "expected"), [(0.2, 9, True), (0.31, 9, True), (0.35, 9, False), (0.9, 0, True)]
)
def test_it_falls_to_chance_where_the_interval_reaches_what_other_boxes_have(
    rate_low: float, n: int, expected: bool
) -> None:
    table = pd.DataFrame(
        [
            {"n": 9, "rate_low": 0.9, "chance": 0.2, "elsewhere": 0.3},
            {"n": n, "rate_low": rate_low, "chance": 0.25, "elsewhere": 0.32},
        ]
    )
    assert randomised.falls_to_chance(table) is expected


def test_a_report_has_them_where_they_are_asked_for_and_keeps_them(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/tiny/eval/test"
    more = ["report.explained=12", "report.gallery=0", "report.pairs=0", "report.neighbours=0"]
    assert tiny.do("eval", tmp_path, *more, "report.write=true") == 0
    assert not (folder / "explain/views.csv").exists()
    assert "The object alone" not in (folder / "report.html").read_text()
    monkeypatch.setattr("pipeline.explain.explain.RANDOMISED_IMAGES", 5)
    assert tiny.do("report", tmp_path, *more, "report.sanity_checks=true") == 0
    page, views = (folder / "report.html").read_text(), pd.read_csv(folder / "explain/views.csv")
    table = pd.read_csv(folder / "explain/randomised.csv")
    predicted = pd.read_csv(folder / "predictions.csv").set_index("id").loc[views["id"]]
    assert len(views) == 12
    assert views["whole"].tolist() == predicted["predicted"].tolist()
    assert views["label"].tolist() == predicted["label"].tolist()
    assert (table["n"] + table["empty"] == 5).all()
    assert table["randomised"].tolist() == [
        *("none", "head", "layer4.0", "layer3.0", "layer2.0", "layer1.0", "conv1"),
    ]
    assert "The object alone, and the background alone" in page
    assert "Do the heat maps depend on what was learned?" in page

    def fail(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(object_alone, "answers", fail)
    monkeypatch.setattr(randomised, "cascade", fail)
    monkeypatch.setattr(process_group, "select_device", fail)  # on a GPU: a context, for nothing
    assert tiny.do("report", tmp_path, *more, "report.sanity_checks=true") == 0
    assert (folder / "report.html").read_text() == page


def test_pictures_without_boxes_are_one_sentence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    unmarked = lambda _, samples: np.full((len(samples), 4), np.nan)  # noqa: E731
    monkeypatch.setattr(annotations, "boxes_in_crop", unmarked)
    assert tiny.do("eval", tmp_path, "report.write=true", "report.sanity_checks=true") == 0
    page = (tmp_path / "runs/tiny/eval/test/report.html").read_text()
    assert "The data set has no boxes, which the sanity checks need." in page
