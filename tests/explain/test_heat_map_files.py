"""Heat maps of pictures, as files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.common.errors import DataError
from pipeline.explain import grad_cam
from pipeline.explain.heat_map_files import HeatMapFiles, heated
from pipeline.models.build import build_model
from tests.helpers import tiny


def test_the_picture_is_dark_and_grey_where_nothing_speaks_for_the_class() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[..., 0] = 200
    shown = heated(pixels, np.array([[0.0, 1.0]]))
    assert np.ptp(shown[:, 0], axis=-1).max() <= 1 and shown[:, 0].max() < 60
    assert (shown[:, -1].astype(int).sum(axis=-1) > 400).all()


def test_each_picture_gets_the_map_of_its_own_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(tiny.config(tmp_path).model, 6)[0].eval()
    crops = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3)).astype(np.uint8)
    labels = [number % 6 for number in range(18)]
    pictures = [(n + 1, Path(f"of/{n}.jpg"), crops[n], labels[n]) for n in range(18)]
    HeatMapFiles(tmp_path / "maps").write(model, pictures, torch.device("cpu"))
    layer = grad_cam.spatial_layer(model, 32)
    assert layer is not None
    with grad_cam.mapping(model, layer) as maps_of:
        for n in (0, 17):
            (grid,) = maps_of(torch.from_numpy(crops[[n]]).permute(0, 3, 1, 2), np.array([labels[n]]))
            shown = np.asarray(Image.open(tmp_path / f"maps/{n + 1:06}-{n}.png"))
            assert np.abs(shown.astype(int) - heated(crops[n], grid)).max() <= 2


def test_a_model_without_a_layer_of_height_and_width_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grad_cam, "spatial_layer", lambda *_: None)
    model = build_model(tiny.config(tmp_path).model, 6)[0]
    picture = (1, Path("a.jpg"), np.zeros((32, 32, 3), np.uint8), 0)
    with pytest.raises(DataError, match=r"--heatmap .*maps: the model has no layer with height and width"):
        HeatMapFiles(tmp_path / "maps").write(model, [picture], torch.device("cpu"))
    assert not (tmp_path / "maps").exists()
