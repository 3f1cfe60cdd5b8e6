import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.common import signals
from pipeline.common.errors import DataError, Stopped
from pipeline.config.data import DataConfig
from pipeline.data import image_store, loader, prepare
from pipeline.data.loader import Batch, worker_count
from pipeline.data.sampling import balanced_order, epoch_order, in_batches, shard_batches
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed.process_group import Ranks
from tests.helpers import processes, tiny

CPU = torch.device("cpu")


def images_of(birds: Path, view: Augmentation | CentreCrop) -> loader.Images:
    data = prepare.load(tiny.config(birds))
    return loader.Images(data.store, data.samples["label"].to_numpy("int64", copy=True), view)


def epoch_batches(rows: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    return in_batches(epoch_order(rows, seed, epoch), batch_size)


def augmented(birds: Path, workers: int, epoch: int, start: int = 0) -> list[Batch]:
    """The batches of an epoch through a real DataLoader."""
    config = tiny.config(birds)
    images = images_of(birds, Augmentation(config.data, config.seed))
    server = loader.Loader(images, workers, CPU)
    return list(server.batches(epoch, epoch_batches(range(60), 8, 0, epoch)[start:]))


def digests(batches: list[Batch]) -> dict[int, str]:
    """What each row looked like."""
    return {
        int(row): hashlib.md5(picture.contiguous().numpy().tobytes()).hexdigest()
        for batch in batches
        for picture, row in zip(batch.image, batch.row, strict=True)
    }


def test_augmentation_does_not_depend_on_the_number_of_workers(birds: Path) -> None:
    alone = digests(augmented(birds, workers=0, epoch=0))
    assert len(alone) == 60
    assert digests(augmented(birds, workers=2, epoch=0)) == alone


def test_augmentation_differs_between_workers_and_epochs(birds: Path) -> None:
    """The same picture at every row: what differs is the random stream alone (albumentations 2.0.8 repeats it)."""
    config = tiny.config(birds)
    images = images_of(birds, Augmentation(config.data, config.seed))
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    images.store = [picture] * 60  # type: ignore[assignment]
    server = loader.Loader(images, 2, CPU)
    # Two workers take batches in turn: batch 0 is the first worker's first, batch 1 the second's.
    first, second = (
        digests(list(server.batches(epoch, np.array_split(np.arange(60), 2)))) for epoch in (0, 1)
    )
    ours, theirs = [first[row] for row in range(30)], [first[row] for row in range(30, 60)]
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) >= 25
    assert sum(first[row] != second[row] for row in first) >= 50
    assert len(set(first.values())) >= 40  # 81 crops x 2 mirrorings are possible


def test_an_epoch_begun_in_its_middle_is_the_end_of_the_whole_one(birds: Path) -> None:
    whole, tail = augmented(birds, 0, epoch=2), augmented(birds, 0, epoch=2, start=3)
    assert len(tail) == len(whole) - 3
    for one, other in zip(whole[3:], tail, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.row, other.row)


def test_a_batch_is_uint8_channels_last_with_the_labels_of_its_rows(birds: Path) -> None:
    samples = prepare.load(tiny.config(birds)).samples
    for batch in augmented(birds, 0, epoch=0):
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape[1:] == (3, 32, 32)
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert batch.label.tolist() == samples["label"].iloc[batch.row.numpy()].tolist()


def test_evaluation_takes_the_centre(birds: Path) -> None:
    data = prepare.load(tiny.config(birds))
    server = loader.Loader(images_of(birds, CentreCrop(DataConfig(image_px=32))), 0, CPU)
    (batch,) = server.batches(0, [np.array([5, 3])])
    for picture, row in zip(batch.image, (5, 3), strict=True):
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), data.store[row][4:36, 4:36])


@pytest.mark.parametrize(("n", "batch_size"), [(60, 8), (64, 8), (7, 8), (65, 64), (1, 1)])
def test_an_epoch_sees_every_row_once_in_batches_of_equal_size(n: int, batch_size: int) -> None:
    rows = [3 * row + 1 for row in range(n)]
    batches = epoch_batches(rows, batch_size, seed=1, epoch=4)
    sizes = {len(batch) for batch in batches}
    assert sorted(np.concatenate(batches)) == rows
    assert len(batches) == -(-n // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(row) for row in np.concatenate(epoch_batches(range(100), 7, seed, epoch))]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_every_batch_without_overlap(world: int) -> None:
    batches = epoch_batches(range(50), 8, 0, 0)
    shares = [shard_batches(batches, Ranks(rank, world, world, CPU)) for rank in range(world)]
    for number, batch in enumerate(batches):
        assert sorted(np.concatenate([shares[rank][number] for rank in range(world)])) == sorted(batch)


def test_workers_follow_the_device_and_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert worker_count(None, Ranks.single(CPU)) == 0
    assert worker_count(3, Ranks.single(CPU)) == 3
    counts = []
    for cores in (1, 5, 100):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        counts.append(worker_count(None, Ranks(0, 2, 2, gpu)))
    assert counts == [1, 2, loader.WORKERS_AT_MOST]


def test_random_resized_crop_and_colour_keep_size_and_type(birds: Path) -> None:
    config = DataConfig(image_px=32, resize_px=40, crop="random_resized", color_jitter=0.4)
    picture = prepare.load(tiny.config(birds)).store[0]
    view = Augmentation(config, seed=0)
    crops = [view(picture, epoch, 0) for epoch in range(4)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in crops)
    assert len({image.tobytes() for image in crops}) == 4
    assert np.array_equal(view(picture, 1, 0), crops[1])


@pytest.mark.parametrize(
    "operations", [{"auto_augment": "trivial"}, {"auto_augment": "rand"}, {"random_erasing": 1.0}]
)
def test_automatic_augmentation_is_seeded_by_image_and_leaves_torchs_stream_alone(
    birds: Path, operations: dict[str, object]
) -> None:
    picture = prepare.load(tiny.config(birds)).store[0]
    plain = Augmentation(DataConfig(image_px=32, resize_px=40), seed=0)
    view = Augmentation(DataConfig(image_px=32, resize_px=40, **operations), seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    crops = [view(picture, epoch, 0) for epoch in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in crops)
    assert all(np.array_equal(view(picture, epoch, 0), crops[epoch]) for epoch in range(8))
    assert sum(not np.array_equal(plain(picture, epoch, 0), crops[epoch]) for epoch in range(8)) >= 5


def test_padding_shifts_the_picture_by_at_most_its_width_and_evaluation_sees_the_middle() -> None:
    picture = np.full((8, 8, 3), 255, np.uint8)
    config = DataConfig(image_px=16, resize_px=16, pad_px=3, flip=False).model_copy(update={"image_px": 8})
    view = Augmentation(config, seed=0)
    places = set()
    for epoch in range(500):
        rows, columns = view(picture, epoch, 0)[..., 0].any(1), view(picture, epoch, 0)[..., 0].any(0)
        places.add((int(rows.sum()), int(columns.sum()), bool(rows[0]), bool(columns[0])))
        assert (view(picture, epoch, 0)[np.ix_(rows, columns)] == 255).all()
    assert {place[0] for place in places} == {place[1] for place in places} == {5, 6, 7, 8}
    assert len(places) == 7 * 7
    assert np.array_equal(CentreCrop(config)(picture, 0, 0), picture)
    whole = CentreCrop(config.model_copy(update={"image_px": 14}))(picture, 0, 0)
    assert np.array_equal(whole[3:-3, 3:-3], picture)
    assert whole.sum() == picture.sum()


def test_progressive_resizing_shows_the_same_crop_smaller_in_the_first_epochs(birds: Path) -> None:
    stages = [{"until_epoch": 2, "image_px": 16}, {"until_epoch": 3, "image_px": 24}]
    config = DataConfig.model_validate_json(
        json.dumps({"image_px": 32, "resize_px": 40, "progressive": stages})
    )
    view = Augmentation(config, seed=0)
    server = loader.Loader(images_of(birds, view), 0, CPU)
    sizes = [next(server.batches(epoch, [np.array([1, 2])])).image.shape[2:] for epoch in range(4)]
    assert sizes == [(16, 16), (16, 16), (24, 24), (32, 32)]
    picture = prepare.load(tiny.config(birds)).store[1]
    whole = Augmentation(DataConfig(image_px=32, resize_px=40), seed=0)(picture, 0, 1)
    assert np.array_equal(view(picture, 0, 1), cv2.resize(whole, (16, 16), interpolation=cv2.INTER_AREA))


def test_a_balanced_epoch_shows_every_class_equally_often_and_each_showing_in_its_own_way() -> None:
    labels = np.array([9, 9] + [0] * 40 + [1] * 8 + [2] * 2)  # the first two rows are not of this split
    rows = np.arange(2, 52)
    order = balanced_order(rows, labels, seed=0, epoch=0)
    assert len(order) == len(rows)
    assert len(set(order)) == len(order)  # a draw is never repeated: a row's second showing is another draw
    showings = np.bincount(labels[order % len(labels)], minlength=3)
    assert sorted(showings[:3]) == [16, 17, 17]
    of_rare = np.bincount(order % len(labels), minlength=52)[50:52]
    assert abs(int(of_rare[0]) - int(of_rare[1])) <= 1
    assert not np.array_equal(order, balanced_order(rows, labels, 0, 1))


def test_a_second_showing_of_an_image_in_an_epoch_is_augmented_differently(birds: Path) -> None:
    images = images_of(birds, Augmentation(DataConfig(image_px=32, resize_px=40), seed=0))
    n = len(images.labels)
    batch = images.__getitems__([(0, 3 + repeat * n) for repeat in range(6)])
    assert batch.row.tolist() == [3] * 6
    assert len({picture.numpy().tobytes() for picture in batch.image}) >= 4


def started(birds: Path, workers: int = 2) -> tuple[Iterator[Batch], list[BaseProcess]]:
    """A served epoch of batches of two images, of which one has come from each loader process; the processes."""
    server = loader.Loader(images_of(birds, CentreCrop(tiny.config(birds).data)), workers, CPU)
    served = server.batches(0, in_batches(np.arange(60), 2))
    first = [next(served) for _ in range(workers)]
    processes = multiprocessing.active_children()
    assert len(processes) == workers
    return itertools.chain(first, served), processes


def signal_all(processes: Iterable[BaseProcess], *numbers: signal.Signals) -> None:
    for process in processes:
        for number in numbers:
            os.kill(process.pid or 0, number)


def test_a_worker_ends_with_its_rank_and_not_by_a_signal_to_all_processes(birds: Path) -> None:
    batches, workers = started(birds)
    # From a process that is not the rank.
    pids = [str(worker.pid) for worker in workers]
    for name in ("-TERM", "-INT", "-USR1"):
        subprocess.run(["kill", name, *pids], check=True)
    assert torch.equal(torch.cat([batch.row for batch in batches]), torch.arange(60))
    for worker in workers:
        worker.terminate()
        worker.join(timeout=10)
        assert worker.exitcode == 0


def serve_and_die(birds: Path, mark: str) -> None:
    processes.mark_children(mark)
    _in_use = started(birds)
    if len(processes.marked(mark)) == 3:  # their server, and two of them
        os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_outlives_a_rank_that_is_killed(birds: Path) -> None:
    """Neither the loader processes nor their server."""
    mark = secrets.token_hex(8)
    rank = processes.CONTEXT.Process(target=serve_and_die, args=(birds, mark))
    rank.start()
    rank.join(processes.WAIT_S)
    assert rank.exitcode == -signal.SIGKILL
    assert processes.all_end(mark)


def serve_and_end(birds: Path, mark: str) -> None:
    """A rank that ends while its loader processes do not answer, as on a disk that hangs."""
    processes.mark_children(mark)
    _in_use, workers = started(birds)
    signal_all(workers, signal.SIGSTOP)
    leaked.append(_in_use)


leaked: list[object] = []  # as an exception that is kept holds what it passed


def test_a_rank_ends_whose_loader_processes_do_not_answer(birds: Path) -> None:
    mark = secrets.token_hex(8)
    rank = processes.CONTEXT.Process(target=serve_and_end, args=(birds, mark))
    rank.start()
    rank.join(processes.WAIT_S)
    assert rank.exitcode == 0
    assert processes.all_end(mark)


def test_a_killed_loader_process_is_named_by_its_signal(birds: Path) -> None:
    batches, workers = started(birds)
    signal_all(workers, signal.SIGKILL)
    with pytest.raises(DataError, match="killed by signal 9 .*lower"):
        list(batches)


def serve_while_a_lock_is_lost(birds: Path) -> None:
    """A loader process is killed as it holds the lock by which torch asks the others to end."""
    server = loader.Loader(images_of(birds, CentreCrop(tiny.config(birds).data)), 2, CPU)
    batches = server.batches(0, in_batches(np.arange(60), 2))
    next(batches)
    iterator: Any = server._loader._iterator  # private: the moment is too short to be met from outside
    iterator._workers_done_event._cond.acquire()
    signal_all(multiprocessing.active_children(), signal.SIGKILL)
    loader.BATCH_PATIENCE_S = 2.0  # torch itself may wait for the lock first
    with pytest.raises(DataError, match=r"killed by signal 9|no batch came in 2 s"):
        list(batches)
    del batches, server, iterator
    gc.collect()


def test_the_lock_of_a_killed_loader_process_is_not_waited_for(birds: Path) -> None:
    rank = processes.CONTEXT.Process(target=serve_while_a_lock_is_lost, args=(birds,))
    rank.start()
    rank.join(60)
    ended = rank.exitcode
    rank.kill()
    assert ended == 0


def test_a_wait_for_a_batch_that_never_comes_ends(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    batches, workers = started(birds)
    signal_all(workers, signal.SIGSTOP)  # as on a disk that does not answer
    monkeypatch.setattr(loader, "BATCH_PATIENCE_S", 0.5)
    with pytest.raises(DataError, match=r"no batch came in 0\.5 s"):
        list(batches)
    for worker in workers:
        worker.join(timeout=10)
        assert worker.exitcode == -signal.SIGKILL


def test_a_signal_ends_a_wait_for_a_batch_that_never_comes(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    batches, workers = started(birds)
    signal_all(workers, signal.SIGSTOP)
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            list(batches)


def test_a_signal_does_not_end_a_wait_for_a_batch_that_comes(birds: Path) -> None:
    batches, _ = started(birds)
    with signals.deferred() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(list(batches)) == 30
        assert stop.name == "SIGTERM"


def test_a_user_error_of_a_loader_process_keeps_its_sentence(birds: Path, tmp_path: Path) -> None:
    """The folder of the data goes before the loader processes open it."""
    folder = tmp_path / "store"
    shutil.copytree(prepare.load(tiny.config(birds)).store.folder, folder)
    images = images_of(birds, CentreCrop(tiny.config(birds).data))
    images.store = image_store.Store(folder)
    server = loader.Loader(images, 2, CPU)
    shutil.rmtree(folder)
    with pytest.raises(DataError) as raised:
        next(server.batches(0, [np.arange(4)]))
    assert str(raised.value) == f"{folder}: missing; run `make data`"


def test_a_bug_in_a_loader_process_keeps_its_traceback(birds: Path) -> None:
    images = images_of(birds, CentreCrop(tiny.config(birds).data))
    images.store = None  # type: ignore[assignment]
    server = loader.Loader(images, 1, CPU)
    with pytest.raises(TypeError, match="(?s)Original Traceback.*not subscriptable"):
        next(server.batches(0, [np.arange(4)]))


MACOS = """
import os, signal
for module, name in ((signal, "sigtimedwait"), (signal, "sigwaitinfo"), (os, "sched_getaffinity")):
    delattr(module, name)
del os.sysconf_names["SC_AVPHYS_PAGES"]
"""


@contextmanager
def training(tmp: Path, mark: str, step: int, *, macos: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A training in a process group of its own, with loader processes, that has logged a step.

    macos: all its processes lack what Python does not have there.
    """
    environment = {**os.environ, processes.MARK: mark}
    if macos:
        (tmp / "sitecustomize.py").write_text(MACOS)
        environment["PYTHONPATH"] = str(tmp)
    more = ("data.workers=2", "train.epochs=400", "tracking.log_every_steps=1")
    words = [sys.executable, "-m", "pipeline", *tiny.arguments("train", tmp, *more)]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        deadline, is_there = time.monotonic() + processes.WAIT_S, tiny.log_reaches(tmp, step)
        while not is_there():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process


@pytest.mark.slow
def test_nothing_outlives_a_training_that_is_killed(birds: Path, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    with training(tmp_path, mark, step=6) as process:  # both loaders have processes
        assert (
            len(processes.marked(mark)) == 1 + 2 + 2 * 2
        )  # with the server, and Python's tracker of resources
        process.kill()
        assert processes.all_end(mark)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "macos"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGUSR1, False), (signal.SIGTERM, True)],
)
def test_a_signal_to_all_processes_saves_and_ends_them(
    birds: Path, tmp_path: Path, number: signal.Signals, macos: bool
) -> None:
    """As terminals, `timeout`, torchrun and Slurm send it."""
    mark = secrets.token_hex(8)
    with training(tmp_path, mark, step=6, macos=macos) as process:
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=processes.WAIT_S)
    assert process.returncode == 75
    assert f"stopped by {number.name} at step" in said
    assert "Traceback" not in said
    assert processes.all_end(mark)
