"""What answers: files are decoded in threads, the model's threads take the pixels, and one file's fault is its own."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.serving.batching import ModelThreads
from pipeline.serving.decoding import Unreadable, crop_of
from pipeline.serving.limits import DecodingRoom, Limits, Load
from pipeline.serving.metrics import Metrics
from pipeline.serving.served_model import ServedModel
from pipeline.serving.uploads import Upload

MAP_DIGITS = 3


class Service:
    """A model with the threads that work for it."""

    def __init__(self, model: ServedModel, limits: Limits, threads: int) -> None:
        """threads: that decode, and as many that compute."""
        self.model, self.limits, self.threads = model, limits, threads
        self.stopping = False
        self.load = Load(limits)
        origin = model.facts["origin"]
        self.identity = {"run": str(origin["run"]), "checkpoint_sha256": str(origin["checkpoint_sha256"])}
        self.metrics = Metrics(self.load, lambda: self.ready, self.identity)
        self._room = DecodingRoom(limits.decoding_pixels)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._model_threads = ModelThreads(
            model.batch_outputs, threads=threads, most=model.batch, observe=self.metrics.batches.observe
        )

    @property
    def healthy(self) -> bool:
        """Whether it can answer at all."""
        return self._model_threads.alive

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.healthy and not self.stopping

    async def answers(
        self, uploads: Sequence[Upload], top: int, *, heat_maps: bool
    ) -> list[dict[str, Any] | Unreadable]:
        """What the model says of each file, as predict.py says it, or why it cannot be read.

        Args:
            top: number of classes of a picture.
            heat_maps: where the picture speaks for each of the classes, where the model gives that.

        Raises:
            Refusal: more pictures are in hand than are allowed.
        """
        with self.load.waiting(len(uploads)):
            found = await asyncio.gather(*(self._answer(upload, top, heat_maps) for upload in uploads))
        for one in found:
            none = isinstance(one, dict) and one.get("none_of_these")
            outcome = "refused" if isinstance(one, Unreadable) else "none_of_these" if none else "answered"
            self.metrics.pictures.labels(outcome).inc()
        return found

    async def _answer(self, upload: Upload, top: int, heat_maps: bool) -> dict[str, Any] | Unreadable:
        given = self.model.facts["preprocessing"]
        try:
            crop = await asyncio.get_running_loop().run_in_executor(
                self._decoders, crop_of, upload.content, given, self.limits, self._room
            )
        except Unreadable as unreadable:
            return unreadable
        found = await self._model_threads.submit(crop)
        said = self.model.named(found, top)
        if heat_maps and "heat_maps" in found:
            said["heat_maps"] = found["heat_maps"][:top].astype(float).round(MAP_DIGITS).tolist()
        return said

    def close(self) -> None:
        """Finish what was begun, and end the threads."""
        self._decoders.shutdown()
        self._model_threads.close()
