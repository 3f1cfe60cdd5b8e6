"""A thread takes its share of what is waiting, and a batch in which bits differ is not made."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.pictures import Pixels
from pipeline.serving.batching import ModelThreads
from pipeline.serving.served_model import Outputs, ServedModel
from tests.helpers.serving import WAIT_S, small_export


class Recorder:
    """A model that names pictures by their first value, once it may."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_answer, self.asked = threading.Event(), threading.Event()

    def __call__(self, crops: Sequence[Pixels]) -> list[Outputs]:
        self.sizes.append(len(crops))
        self.asked.set()
        assert self.may_answer.wait(WAIT_S)
        return [{"logits": int(crop.flat[0])} for crop in crops]


def crop(value: int) -> Pixels:
    return np.full((3, 2, 2), value, np.uint8)


async def submit_one_then(model: Recorder, threads: ModelThreads, values: range) -> list[int]:
    """Outputs of a picture that occupies a thread, and of others that come while it does."""
    first = threads.submit(crop(0))
    await asyncio.to_thread(model.asked.wait, WAIT_S)
    others = [threads.submit(crop(value)) for value in values]
    model.may_answer.set()
    return [(await one)["logits"] for one in (first, *others)]


def test_what_has_come_meanwhile_is_asked_together_up_to_the_limit() -> None:
    model = Recorder()
    threads = ModelThreads(model, threads=1, most=4)
    assert asyncio.run(submit_one_then(model, threads, range(1, 8))) == list(range(8))
    threads.close()
    assert model.sizes == [1, 4, 3], "the first picture waits for nobody"


def test_threads_share_what_is_waiting() -> None:
    model = Recorder()
    threads = ModelThreads(model, threads=2, most=8)

    async def ask() -> None:
        busy = [threads.submit(crop(n)) for n in (0, 1)]
        while len(model.sizes) < 2:
            await asyncio.sleep(0.001)
        rest = [threads.submit(crop(n)) for n in range(2, 10)]
        model.may_answer.set()
        await asyncio.gather(*busy, *rest)

    asyncio.run(ask())
    threads.close()
    assert sum(model.sizes) == 10
    assert max(model.sizes) == 4, "one thread took what the other could have computed"


def test_the_error_of_a_batch_reaches_each_who_asked_and_the_thread_goes_on() -> None:
    calls: list[int] = []

    def model(crops: Sequence[Pixels]) -> list[Outputs]:
        calls.append(len(crops))
        if len(calls) == 1:
            raise ValueError("broken")
        return [{"logits": 1} for _ in crops]

    threads = ModelThreads(model, threads=1, most=1)

    async def ask() -> None:
        with pytest.raises(ValueError, match="broken"):
            await threads.submit(crop(0))
        assert await threads.submit(crop(0)) == {"logits": 1}

    asyncio.run(ask())
    assert threads.alive
    threads.close()
    assert not threads.alive


def test_a_picture_that_nobody_waits_for_is_not_computed() -> None:
    model = Recorder()
    threads = ModelThreads(model, threads=1, most=1)

    async def ask() -> None:
        first = threads.submit(crop(0))
        await asyncio.to_thread(model.asked.wait, WAIT_S)
        gone, last = threads.submit(crop(1)), threads.submit(crop(2))
        gone.cancel()
        model.may_answer.set()
        await first
        assert (await last)["logits"] == 2

    asyncio.run(ask())
    threads.close()
    assert model.sizes == [1, 1]


def test_a_batch_whose_bits_differ_from_those_of_one_picture_is_never_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Rounding(ServedModel):
        """Otherwise from four pictures on."""

        def batch_outputs(self, crops: Sequence[Pixels]) -> list[Outputs]:
            found = super().batch_outputs(crops)
            if len(crops) >= 4:
                found[-1]["logits"] = np.nextafter(found[-1]["logits"], np.float32(np.inf))
            return found

    folder = small_export(tmp_path / "small")
    assert ServedModel(folder, 8).batch == 8
    assert Rounding(folder, 8).batch == 3
    assert "at most 3 pictures a batch" in capfd.readouterr().err
