import shutil
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image

from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import pictures, prepare
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation.statistics import wilson
from pipeline.explain import annotations, grad_cam, neighbours, pointing_game, selection
from pipeline.models.build import build_model
from tests.helpers import tiny

ALONE = Ranks.single(torch.device("cpu"))


@pytest.mark.parametrize("resize", ["squash", "short_side"])
@pytest.mark.parametrize(("width", "height"), [(200, 120), (90, 210)])
def test_a_mark_in_the_picture_is_found_where_the_annotation_says_in_the_crop(
    resize: str, width: int, height: int
) -> None:
    config = DataConfig.model_validate({"resize": resize, "resize_px": 80, "image_px": 64})
    picture = np.zeros((height, width, 3), np.uint8)
    x, y = width // 2 + 11, height // 2 - 7
    cv2.rectangle(picture, (x - 6, y - 6), (x + 5, y + 5), (255, 255, 255), -1)
    samples = pd.DataFrame({"id": [3], "width": [width], "height": [height]})
    samples[["box_x", "box_y", "box_w", "box_h"]] = [[x - 6.0, y - 6.0, 12.0, 12.0]]
    layout = pictures.Layout(config.resize, config.resize_px, "packed")
    crop = CentreCrop(config)(pictures.resized(picture, *layout.size(width, height)), 0, 0)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    (box,) = annotations.boxes_in_crop(config, samples)
    assert np.abs(box - seen).max() <= 1


def test_a_box_is_cut_at_the_crop_and_a_missing_one_stays_missing() -> None:
    config = DataConfig(resize="squash", resize_px=100, image_px=80)
    samples = pd.DataFrame({"id": [1, 2], "width": [200, 200], "height": [100, 100]})
    samples[["box_x", "box_y", "box_w", "box_h"]] = [[0.0, 50.0, 100.0, 50.0], [np.nan] * 4]
    boxes = annotations.boxes_in_crop(config, samples)
    assert boxes[0].tolist() == [0, 40, 40, 80]
    assert np.isnan(boxes[1]).all()


def test_parts_are_read_by_image_and_part_and_hidden_ones_are_missing(tmp_path: Path) -> None:
    config = DataConfig(resize="squash", resize_px=100, image_px=80)
    samples = pd.DataFrame({"id": [7, 5], "width": [200, 100], "height": [100, 100]})
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/parts.txt").write_text("1 back\n2 left eye\n")
    (tmp_path / "parts/part_locs.txt").write_text(
        "5 1 50.0 20.0 1\n5 2 60.0 60.0 0\n7 1 5.0 50.0 1\n7 2 100.0 30.0 1\n9 1 1.0 1.0 1\n"
    )
    parts = annotations.parts_in_crop(config, samples, tmp_path)
    assert parts is not None
    assert parts.names == ["back", "left eye"]
    expected = [[[np.nan, np.nan], [40, 20]], [[40, 10], [np.nan, np.nan]]]  # 7's back lies left of the crop
    np.testing.assert_array_equal(parts.xy, expected)
    assert annotations.parts_in_crop(config, samples, tmp_path / "parts") is None
    (tmp_path / "parts/part_locs.txt").write_text("5 1 fifty 20.0 1\n")
    with pytest.raises(DataError, match=r"part_locs.txt: not lines of `id part x y visible`"):
        annotations.parts_in_crop(config, samples, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("parts/parts.txt", b"1 back\n2\n", "parts.txt: lines 2 (1 in all) not of the form `number name`"),
        ("parts/parts.txt", b"1 back\n2 \xff\n", "parts.txt: not UTF-8 text (byte 9)"),
        ("parts/part_locs.txt", b"nan 1 5.0 20.0 1\n", "part_locs.txt: not lines of `id part x y visible`"),
        ("parts/part_locs.txt", b"\xff 1 5.0 20.0 1\n", "part_locs.txt: not lines of `id part x y visible`"),
        ("attributes.txt", b"1 \xff\n", "attributes.txt: not UTF-8 text (byte 2)"),
        ("classes.txt", b"1 001.A\n2 002.C\n", "classes.txt: 002.B (1 in all) not listed"),
        ("attributes/class_attribute_labels_continuous.txt", b"1\n", "1 rows of 1 numbers"),
        ("attributes/class_attribute_labels_continuous.txt", b"1\nx\n", "not a table of numbers"),
        ("attributes/class_attribute_labels_continuous.txt", b"\xff", "not a table of numbers"),
    ],
)
def test_damaged_annotations_are_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    contents = {
        "parts/parts.txt": "1 back\n",
        "parts/part_locs.txt": "7 1 5.0 50.0 1\n",
        "classes.txt": "1 001.A\n2 002.B\n",
        "attributes.txt": "1 has_bill\n",
        "attributes/class_attribute_labels_continuous.txt": "10\n90\n",
    }
    for file, text in contents.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    config, samples = DataConfig(), pd.DataFrame({"id": [7], "width": [200], "height": [100]})
    assert annotations.parts_in_crop(config, samples, tmp_path) is not None
    assert annotations.attributes(tmp_path, ["001.A", "002.B"]) is not None
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        annotations.parts_in_crop(config, samples, tmp_path)
        annotations.attributes(tmp_path, ["001.A", "002.B"])
    message = str(caught.value)
    assert sentence in message and "\n" not in message and message.endswith("; fix it and run again")


@pytest.mark.parametrize("resize", ["squash", "short_side"])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_boxes_and_parts_of_a_turned_photograph_are_those_of_the_picture_as_it_is_shown(
    tmp_path: Path, resize: str, orientation: int
) -> None:
    upright = np.zeros((120, 200, 3), np.uint8)
    cv2.rectangle(upright, (105, 47), (116, 58), (255, 255, 255), -1)
    back = {1: None, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    stored, exif = Image.fromarray(upright), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (stored if back is None else stored.transpose(back)).save(tmp_path / "turned.png", exif=exif)
    config = DataConfig.model_validate({"resize": resize, "resize_px": 80, "image_px": 64})
    pixels, facts = pictures.make_entry(tmp_path / "turned.png", pictures.Layout.of(config))
    samples = pd.DataFrame({"id": [3], "width": [facts["width"]], "height": [facts["height"]]})
    samples[["box_x", "box_y", "box_w", "box_h"]] = [[105.0, 47.0, 12.0, 12.0]]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/parts.txt").write_text("1 middle\n")
    (tmp_path / "parts/part_locs.txt").write_text("3 1 111 53 1\n")
    crop = CentreCrop(config)(pixels, 0, 0)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(annotations.boxes_in_crop(config, samples)[0] - seen).max() <= 1
    parts = annotations.parts_in_crop(config, samples, tmp_path)
    assert parts is not None
    assert np.abs(parts.xy[0, 0] - [seen[::2].mean(), seen[1::2].mean()]).max() <= 1


def test_attributes_are_those_of_the_classes_in_the_order_of_labels(tmp_path: Path) -> None:
    root = tmp_path / "CUB"
    (root / "attributes").mkdir(parents=True)
    (root / "classes.txt").write_text("1 001.A\n2 002.B\n3 003.C\n")
    (tmp_path / "attributes.txt").write_text("1 has_bill::long\n2 has_eye::red\n3 has_tail::forked\n")
    table = root / "attributes/class_attribute_labels_continuous.txt"
    table.write_text("10.0 20.0 50.0\n0 0 0\n90.0 20.0 45.0\n")
    attributes = annotations.attributes(root, ["001.A", "003.C"])
    assert attributes is not None
    differing = annotations.differing(attributes, "001.A", "003.C", 5)
    assert differing.to_numpy().tolist() == [["has_bill::long", 10, 90], ["has_tail::forked", 50, 45]]
    assert annotations.attributes(root / "attributes", ["001.A"]) is None
    table.write_text("1 2 3\n")
    with pytest.raises(DataError, match="1 rows of 3 numbers, where 3 classes and 3 attributes"):
        annotations.attributes(root, ["001.A"])


@pytest.fixture
def job(birds: Path, tmp_path: Path) -> tuple:
    """The tiny birds at 96 px, where the smallest network has maps of 3 x 3."""
    more = ["data.resize_px=96", "data.image_px=96", tiny.own_data(tmp_path)]
    assert tiny.do("data", tmp_path, *more) == 0
    config = tiny.config(tmp_path, *more)
    torch.manual_seed(0)
    model, _ = build_model(config.model, tiny.SPECIES)
    return config, prepare.load(config), model.eval()


def test_heat_maps_are_the_class_activation_maps_that_theory_says(job: tuple) -> None:
    # With average pooling and a linear head, Grad-CAM is CAM: the head's weights over the last maps.
    config, data, model = job
    layer = grad_cam.spatial_layer(model, config.data.image_px)
    assert layer is model.backbone.layer4
    with torch.no_grad():
        model.head.weight.normal_(0.02, 1)
    rows, classes = np.array([2, 31, 9, 50]), np.array([1, 4, 0, 5])
    maps = grad_cam.class_maps(config, data, model, layer, rows, classes, ALONE)
    images = torch.from_numpy(np.stack([data.store[row] for row in rows])).permute(0, 3, 1, 2)
    with torch.no_grad():
        last = model.backbone.forward_features((images - model.mean) / model.std)
    cam = torch.einsum("bkhw,bk->bhw", last, model.head.weight[classes]).clamp(min=0).detach()
    cam -= cam.amin((1, 2), keepdim=True)
    expected = (cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-7)).numpy()
    assert maps.shape == (4, 3, 3)
    assert maps.dtype == np.float16
    assert 0.1 < (expected == 0).mean() < 0.9  # what speaks against a class is cut off
    np.testing.assert_allclose(maps, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", None), ("test_convnext", 5), ("test_efficientnet", 5)]
)
def test_which_networks_have_a_spatial_layer(name: str, side: int | None) -> None:
    config = tiny.config(Path("unused"), f"model.name={name}")
    model, _ = build_model(config.model, 3)
    layer = grad_cam.spatial_layer(model, 160)
    assert (layer is None) == (side is None)
    assert not any(module._forward_hooks for module in model.modules())  # torch has no public list of them


def test_maps_with_channels_last_are_turned(job: tuple) -> None:
    config, data, _ = job
    swin = tiny.config(
        Path("unused"),
        "model.name=swin_tiny_patch4_window7_224",
        "model.options={img_size: 96, window_size: 3}",
    )
    model, _ = build_model(swin.model, tiny.SPECIES)
    layer = grad_cam.spatial_layer(model.eval(), 96)
    assert layer is not None
    maps = grad_cam.class_maps(config, data, model, layer, np.array([0]), np.array([1]), ALONE)
    assert maps.shape == (1, 3, 3)


def test_the_pointing_game_by_hand() -> None:
    predicted = pd.DataFrame(
        {
            "id": [1, 2, 3, 4, 5, 6],
            "path": list("abcdef"),
            "class_name": ["x"] * 6,
            "predicted_name": ["x", "x", "y", "y", "x", "y"],
            "label": [0] * 6,
            "predicted": [0, 0, 1, 1, 0, 1],
        }
    )
    corner, middle, right, nothing = np.zeros((4, 4, 4))
    corner[0, 0] = middle[2, 1] = right[2, 3] = 1  # peaks at (10, 10), (30, 50) and (70, 50) of 80 pixels
    boxes = np.array([[20.0, 40, 60, 80]] * 4 + [[np.nan] * 4] + [[20.0, 40, 60, 80]])
    xy = np.full((6, 2, 2), np.nan)
    xy[:, 0] = [31, 50]
    xy[0, 1] = [29.5, 50]
    parts = annotations.Parts(["back", "beak"], xy)
    maps = np.stack([middle, corner, middle, nothing, middle, right])
    images = pointing_game.play(predicted, maps, boxes, parts, 80)
    assert images["id"].tolist() == [1, 2, 3, 4, 6]
    assert images["hit"].tolist() == [True, False, True, False, False]
    assert images["part"].tolist() == ["beak", "", "back", "", ""]
    assert images["correct"].tolist() == [True, True, False, False, False]
    assert images[["peak_x", "peak_y"]].iloc[0].tolist() == [30, 50]
    assert images["peak_x"].isna().tolist() == [False, False, False, True, False]
    assert images["box_share"].tolist() == [0.25] * 5
    assert images["energy"].iloc[1] == images["energy"].iloc[3] == 0
    assert (
        0.6 < images["energy"].iloc[0] < 0.8
    )  # a tent over x 10..50 and y 30..70; inside: x > 20 and y > 40
    assert images["energy"].iloc[4] < 0.2
    summary = pointing_game.rates(images).set_index("predictions")
    assert summary["n"].tolist() == [5, 2, 3]
    assert summary["hits"].tolist() == [2, 1, 1]
    assert summary["chance"].tolist() == [0.25] * 3
    assert summary.loc["all", ["rate_low", "rate_high"]].tolist() == list(wilson(2, 5))
    counts = pointing_game.count_parts(images, parts.names)
    assert counts.to_dict("list") == {
        "part": ["back", "beak", ""],
        "all": [1, 1, 3],
        "right": [0, 1, 1],
        "wrong": [1, 0, 2],
    }


def test_recall_and_neighbours_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), 8)
    features = (rng.normal(size=(40, 6)) + 1.2 * rng.normal(size=(5, 6))[labels]).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -2)
    order = np.argsort(-similar, axis=1)
    same = labels[order] == labels[:, None]
    expected = {1: same[:, :1].any(1).mean(), 5: same[:, :5].any(1).mean()}
    assert neighbours.recall(features, labels, (1, 5)) == pytest.approx(expected)
    assert 0.2 < expected[1] < expected[5] < 1
    near, cosine = neighbours.nearest(features, features[:2] * 3, 4)
    assert near[:, 0].tolist() == [0, 1]
    np.testing.assert_array_equal(near[:, 1:], order[:2, :3])
    np.testing.assert_allclose(cosine[:, 1:], -np.sort(-similar[:2], axis=1)[:, :3], atol=1e-6)


def test_the_map_keeps_groups_together_and_is_the_same_again() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    features = (rng.normal(size=(60, 16)) * 0.1 + 3 * np.eye(16)[labels]).astype(np.float32)
    xy = neighbours.embedding(features, seed=1)
    assert xy is not None
    assert (xy.min(0).tolist(), xy.max(0).tolist()) == ([0, 0], [1, 1])
    away = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(away, 9)
    assert (labels[away.argmin(1)] == labels).all()
    np.testing.assert_array_equal(xy, neighbours.embedding(features, seed=1))
    assert neighbours.embedding(features[:4], seed=1) is None


def test_which_images_are_looked_at() -> None:
    names = np.array(["a", "b", "c"])
    label, guess = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 2])
    predicted = pd.DataFrame(
        {
            "id": [10, 11, 12, 13, 14, 15],
            "label": label,
            "predicted": guess,
            "class_name": names[label],
            "predicted_name": names[guess],
            "confidence": [0.9, 0.6, 0.8, 0.7, 0.5, 0.9],
            "probability": [0.9, 0.3, 0.1, 0.7, 0.4, 0.9],
        }
    )
    assert selection.worst(predicted, 2)["id"].tolist() == [12, 11]
    assert selection.mistaken(predicted, "a", "b")["id"].tolist() == [12, 11]
    assert selection.typical(predicted, "a", 2)["id"].tolist() == [10, 11]
    pairs = pd.DataFrame({"class_a": ["a"], "class_b": ["b"]})
    assert selection.mistaken_of_pairs(predicted, pairs, 3) == [12, 11, 14]
    assert selection.sample(predicted, None, 0) == selection.sample(predicted, 6, 0) == list(range(10, 16))
    drawn = selection.sample(predicted, 3, 0)
    assert len(set(drawn)) == 3
    assert drawn == sorted(drawn) == selection.sample(predicted, 3, 0)
    assert len({tuple(selection.sample(predicted, 3, seed)) for seed in range(20)}) > 3


def test_heat_maps_of_a_deterministic_run_may_use_layers_without_deterministic_gradients(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    seen: list[bool] = []
    class_maps = grad_cam.class_maps

    def noted(*arguments: Any) -> grad_cam.Maps:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return class_maps(*arguments)

    monkeypatch.setattr(grad_cam, "class_maps", noted)
    settings = ["eval.split=val", "train.deterministic=true", "report.write=true"]
    assert tiny.do("eval", tmp_path, *settings) == 0
    assert seen == [False]


class Noted(torch.autograd.Function):
    """The identity, which notes whether its gradient has to be deterministic."""

    seen: ClassVar[list[bool]] = []

    @staticmethod
    def forward(_: Any, features: torch.Tensor) -> torch.Tensor:
        return features.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        Noted.seen.append(torch.are_deterministic_algorithms_enabled())
        return gradient


def test_a_map_may_use_gradients_that_are_not_deterministic_and_the_run_stays_so(job: tuple) -> None:
    """As `predict --heatmap` of a deterministic run with model.pool=max: CUDA has no such gradient of that pooling."""
    _, _, model = job
    layer = grad_cam.spatial_layer(model, 96)
    assert layer is not None
    layer.register_forward_hook(lambda _, __, output: Noted.apply(output))
    Noted.seen.clear()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with grad_cam.mapping(model, layer) as maps_of:
            maps_of(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), np.array([0, 1]))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert Noted.seen == [False]


def test_the_pass_that_finds_the_layer_times_no_algorithms(
    job: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, model = job
    seen: list[bool] = []
    model.backbone.layer4.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    grad_cam.spatial_layer(model, 96)
    assert seen == [False]
    assert torch.backends.cudnn.benchmark
