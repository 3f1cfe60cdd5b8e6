"""The check of the disks, and the estimated size of a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.doctor.disk import checkpoint_bytes
from tests.helpers import tiny
from tests.helpers.findings import Findings, built_model


@pytest.mark.parametrize("small_disk", ["128k"], indirect=True)
def test_a_full_disk_is_a_no_go(ask: Callable[..., Findings], small_disk: Path) -> None:
    disk = ask("--quick", f"run.root={small_disk}/runs", go=False)["disk"]
    assert disk["state"] == "no-go"
    assert "run.root" in disk["next"]
    assert not list(small_disk.iterdir())


def test_the_size_of_a_checkpoint_is_foreseen(trained: Path, tmp_path: Path) -> None:
    for overrides in ([], ["train.ema_decay=0.9", "optim.name=adamw", "train.max_steps=1"]):
        if overrides:
            assert tiny.do("train", tmp_path, *overrides) == 0
        folder = tmp_path if overrides else trained
        model = built_model(folder, *overrides)
        size = (folder / "runs/tiny/checkpoints/last.pt").stat().st_size
        names = len(model.state.model.state_dict())
        # What is not in a tensor is some 200 bytes for each of them, and the settings.
        assert (
            0 < size - checkpoint_bytes(tiny.config(folder, *overrides), model.state) < 40_000 + 2_000 * names
        )


def test_a_file_with_two_names_takes_its_room_once(ask: Callable[..., Findings], tmp_path: Path) -> None:
    folder = tiny.checkpoints(tmp_path)
    folder.mkdir(parents=True)
    before = ask("--quick", go=True)["disk"]["numbers"]["checkpoints_bytes"]
    (folder / "best.pt").write_bytes(bytes(1000))
    (folder / "last.pt").hardlink_to(folder / "best.pt")
    assert ask("--quick", go=False)["disk"]["numbers"]["checkpoints_bytes"] == before - 1000
