"""The room that batches need in /dev/shm."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.data import shared_memory
from pipeline.distributed.process_group import Ranks
from pipeline.training.setup import TrainingSetup
from tests.helpers import tiny

CPU = torch.device("cpu")
SINGLE = Ranks.single(CPU)
IMAGE = 3 * 32 * 32  # bytes


@pytest.mark.parametrize(
    ("overrides", "workers", "ranks", "images"),
    [
        ([], 0, SINGLE, 0),
        ([], 2, SINGLE, 6 * 64),  # the batches of validation are the larger ones
        (["optim.batch_size=100"], 2, SINGLE, 6 * 100),
        (["optim.batch_size=100", "data.val_fraction=0"], 1, SINGLE, 4 * 100),
        (["optim.batch_size=8", "data.val_fraction=0"], 1, SINGLE, 4 * 8),
        (["data.val_fraction=0", "data.source=folder", "data.path=birds"], 1, SINGLE, 4 * 64),
        (["data.val_fraction=0", "train.start_from=probe", "model.pretrained=true"], 1, SINGLE, 4 * 64),
        (["train.eval_every_steps=1"], 1, SINGLE, 4 * (8 + 64)),
        (["optim.batch_size=101", "data.val_fraction=0"], 1, Ranks(0, 4, 2, CPU), 2 * 4 * 26),
        (
            [
                "data.val_fraction=0",
                "data.progressive=[{until_epoch: 1, image_px: 16, images_per_step: 400}]",
            ],
            1,
            SINGLE,
            4 * 100,
        ),
    ],
)
def test_the_room_needed_is_that_of_the_batches_that_can_be_there_at_once(
    tmp_path: Path, overrides: list[str], workers: int, ranks: Ranks, images: int
) -> None:
    config = tiny.config(tmp_path, *overrides)
    assert shared_memory.needed_bytes(config, workers, ranks) == images * IMAGE


def test_a_training_that_has_no_room_is_refused_before_its_loader_starts(
    birds: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", small_disk)
    TrainingSetup(tiny.config(tmp_path, "data.workers=1"), SINGLE)  # 768 KiB of 1 MiB
    with pytest.raises(
        ConfigError, match=r"2 loader processes need 1\.1 MiB .*1\.0 MiB are free; .*--shm-size"
    ):
        TrainingSetup(tiny.config(tmp_path, "data.workers=2"), SINGLE)
    TrainingSetup(tiny.config(tmp_path, "data.workers=0"), SINGLE)


def test_a_tensor_without_room_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    # private: the real folder cannot be filled without harm to other programs
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    with pytest.raises(
        ConfigError, match=r"no room for 6\.0 KiB in /dev/shm .*No space left.*data\.workers=0"
    ):
        shared_memory.empty((2, IMAGE), torch.uint8)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 5, 5, 3), torch.uint8), ((7,), torch.int64), ((0, 4, 4, 3), torch.uint8)]
)
def test_a_tensor_is_made_there(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = shared_memory.empty(shape, dtype)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    assert tensor.is_contiguous()
    assert tensor.is_shared()
    tensor.fill_(3)
    assert (tensor == 3).all()


def with_shared_memory(size: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run our program where /dev/shm has this size."""
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"', "sh"]
    if tiny.launch([*mount, "true"]).returncode:
        pytest.skip("a mount of its own is not permitted here")
    return tiny.launch([*mount, sys.executable, "-m", "pipeline", *words], timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "eval", "lr-find", "doctor"])
def test_too_small_a_shared_memory_ends_every_verb(trained: Path, tmp_path: Path, verb: str) -> None:
    if verb == "eval":
        shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    done = with_shared_memory("64k", *tiny.arguments(verb, tmp_path, "data.workers=2"))
    assert done.returncode == 2, done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr
