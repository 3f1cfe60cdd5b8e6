"""The fixture of the tests that need a W&B server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.wandb_server import WandbServer
from tests.helpers.wandb_world import World


@pytest.fixture
def world(birds: Path, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, WandbServer().start())
    yield world
    world.server.stop()
