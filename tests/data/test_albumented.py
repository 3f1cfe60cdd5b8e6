from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.data import DataConfig
from pipeline.data import albumented
from pipeline.data.transforms import Augmentation


@pytest.fixture
def forgetful(request: pytest.FixtureRequest) -> None:
    """Packages are looked at anew."""
    check = albumented._refuse_other_packages  # private: it remembers what it saw, and has to forget it here
    check.cache_clear()
    request.addfinalizer(check.cache_clear)


@pytest.mark.parametrize("name", ["albumentationsx", "nrtk-albumentations", "Albumentations_Fork"])
def test_another_package_of_albumentations_import_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, forgetful: None, name: str
) -> None:
    files = [Path("albumentations/__init__.py"), Path("albumentations/core/composition.py")]
    packages = [*metadata.distributions(), SimpleNamespace(name=name, files=files)]
    monkeypatch.setattr(metadata, "distributions", lambda: packages)
    with pytest.raises(ConfigError, match=f"the package {name} is installed.*pip uninstall {name}"):
        Augmentation(DataConfig(color_jitter=0.1), seed=0)
    Augmentation(DataConfig(), seed=0)  # does without albumentations


def test_a_package_beside_albumentations_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    beside = SimpleNamespace(name="albumentations-viewer", files=[Path("albumentations_viewer/__init__.py")])
    unread = SimpleNamespace(name="albumentations-egg", files=None)
    packages = [*metadata.distributions(), beside, unread]
    monkeypatch.setattr(metadata, "distributions", lambda: packages)
    Augmentation(DataConfig(color_jitter=0.1), seed=0)


@pytest.mark.parametrize("settings", [{}, {"flip": False}, {"pad_px": 3}, {"image_px": 31}, {"image_px": 40}])
def test_crops_of_any_place_are_those_that_albumentations_draws(settings: dict[str, Any]) -> None:
    config = DataConfig(**{"resize_px": 40, "image_px": 32, **settings})
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    drawn, view = Augmentation(config, seed=2), Augmentation(config, seed=2)
    drawn._crop = albumented.crop_and_colour(config)  # private: what takes its place with colours
    crops = [view(picture, epoch, index) for epoch in range(3) for index in range(20)]
    assert np.array_equal(crops, [drawn(picture, epoch, index) for epoch in range(3) for index in range(20)])
