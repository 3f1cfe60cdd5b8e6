"""Threads that ask the model: each takes what is waiting, up to a limit. Nobody waits for a batch to fill."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.data.pictures import Pixels
from pipeline.serving.served_model import Outputs

Model = Callable[[Sequence[Pixels]], list[Outputs]]


class _Job(NamedTuple):
    crop: Pixels
    future: "asyncio.Future[Outputs]"


class ModelThreads:
    """Of one server. Whoever submits bounds how much is waiting (`limits.Load`)."""

    def __init__(
        self, model: Model, *, threads: int, most: int, observe: Callable[[int], None] = lambda _: None
    ) -> None:
        """Start them.

        Args:
            model: pictures -> the outputs of each.
            most: pictures of a batch.
            observe: is told the size of each batch, in the thread that computes it.
        """
        self._model, self._most, self._observe = model, most, observe
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._threads = [threading.Thread(target=self._work, name=f"model-{n}") for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, crop: Pixels) -> "asyncio.Future[Outputs]":
        """The outputs of a picture, uint8 [3, P, P]. For the thread of an event loop."""
        job = _Job(crop, asyncio.get_running_loop().create_future())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    @property
    def alive(self) -> bool:
        """Whether every thread works."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Answer what is waiting, then end the threads."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            wanted = [job for job in jobs if not job.future.cancelled()]  # who asked may be gone
            if wanted:
                self._answer(wanted)

    def _take(self) -> list[_Job]:
        """This thread's share of what is waiting, as soon as something is; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            share = -(-len(self._waiting) // len(self._threads))
            return [self._waiting.popleft() for _ in range(min(share, self._most))]

    def _answer(self, jobs: list[_Job]) -> None:
        self._observe(len(jobs))
        try:
            found: list[Outputs] | Exception = self._model([job.crop for job in jobs])
        except Exception as error:  # whoever asked gets it, and the thread goes on
            found = error
        jobs[0].future.get_loop().call_soon_threadsafe(_deliver, jobs, found)


def _deliver(jobs: list[_Job], found: list[Outputs] | Exception) -> None:
    for n, (_, future) in enumerate(jobs):
        if future.done():
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found[n])
