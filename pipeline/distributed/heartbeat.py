"""Who takes part in a job of several ranks, who still answers, and why it ends: in the rendezvous' store.

A rank that dies leaves the others waiting for an exchange that never comes, or with "connection closed".
So every rank's heart beats in the store, from a thread of its own, and the rank that ends the job says there
why, once: then each of the others can name the rank and the machine.
"""

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

MEET_S = 0.05  # between two looks for the others, at the start
BEAT_S = 1.0
LOOK_S = 5.0  # between two looks at the beats: who has not beaten in that time does not answer
STORE_S = 20.0  # for an answer of the store; on a network that was cut, TCP itself waits a quarter of an hour


class Store(Protocol):
    """What is used of `torch.distributed.Store`: texts by name, on one machine, for all."""

    def set_timeout(self, timeout: timedelta, /) -> None: ...
    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...
    def clone(self) -> "Store": ...


def rendezvous(store: Store, rank: int, world: int, timeout_s: float) -> str:
    """A name for this attempt of the job, the same on all ranks and on no earlier attempt.

    torchrun's store outlives a restart, with all that the ranks before have left in it. So each rank waits
    for an answer to a number of its own, and the first rank answers every number that it finds, be it an old one,
    until all ranks have thanked.

    Raises:
        TimeoutError: with the ranks that did not come.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + timeout_s
    store.set(f"hello/{rank}", own)
    attempt = own if rank == 0 else ""
    missing = [other for other in range(world) if other != rank] if rank == 0 else [0]
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {', '.join(map(str, missing))} did not come in {timeout_s:g} s")
        if rank == 0:
            for other in missing:
                if store.check([f"hello/{other}"]):
                    store.set(f"welcome/{other}/{store.get(f'hello/{other}').decode()}", attempt)
            missing = [other for other in missing if not store.check([f"thanks/{other}/{attempt}"])]
        elif store.check([f"welcome/{rank}/{own}"]):
            attempt, missing = store.get(f"welcome/{rank}/{own}").decode(), []
            store.set(f"thanks/{rank}/{attempt}", "")
        time.sleep(MEET_S)
    return attempt


class Heartbeat:
    """This rank's entry in the list of all, and its view of the others'."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        """store: of torchrun's rendezvous, which every rank reaches."""
        self.rank, self.world = rank, world
        self.collectives = 0
        """how many exchanges this rank has come to: who is behind the others keeps them waiting"""
        self._store, self._end = store, threading.Event()
        store.set_timeout(timedelta(seconds=STORE_S))
        store.set(f"name/{rank}", f"rank {rank} on {platform.node()}, process {os.getpid()}")
        threading.Thread(target=self._beat, args=(store.clone(),), daemon=True).start()

    def close(self) -> None:
        """Let the heart stop."""
        self._end.set()

    def name(self, rank: int) -> str:
        """`rank 1 on host-b, process 4711`."""
        return self._store.get(f"name/{rank}").decode()

    def first_to_say(self, why: str) -> bool:
        """Say why the job ends; False when another rank has said it before. A lost store counts as nobody."""
        own = f"rank {self.rank}: {why}"
        said = _in_time(lambda: self._store.compare_set("why", "", own).decode())
        return said is None or said == own

    def why(self) -> str | None:
        """What the rank that ended the job said, with its name."""
        if not self._store.check(["why"]):
            return None
        rank, _, why = self._store.get("why").decode().partition(": ")
        return f"{self.name(int(rank.removeprefix('rank ')))}: {why}"

    def mark_done(self, what: str) -> None:
        """Say that this rank has done something others wait for."""
        self._store.set(f"done/{what}/{self.rank}", "")

    def is_done(self, what: str, rank: int) -> bool:
        """Whether a rank has said so."""
        return self._store.check([f"done/{what}/{rank}"])

    def dead_ranks(self) -> list[int]:
        """The ranks whose heart does not beat; takes `LOOK_S` seconds."""
        before = self._beats()
        time.sleep(LOOK_S)
        after = self._beats()
        return [rank for rank in range(self.world) if before[rank] == after[rank]]

    def verdict(self) -> str:
        """Why an exchange failed: what another rank said, who does not answer, or who has not come to it."""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return (
            _in_time(self._verdict)
            or f"the rendezvous at {where} (rank 0's machine) does not answer any more"
        )

    def _verdict(self) -> str:
        if (said := self.why()) is not None:
            return said
        silent = self.dead_ranks()
        if (said := self.why()) is not None:
            return said
        if silent:
            return f"{', '.join(map(self.name, silent))}: does not answer any more"
        counts = [int(beat.partition(" ")[2] or 0) for beat in self._beats()]
        late = [rank for rank, count in enumerate(counts) if count < max(counts)]
        if late:
            return f"{', '.join(map(self.name, late))}: answers, and has not come to the exchange in time"
        return f"all {self.world} ranks answer, and an exchange between them failed or took too long"

    def _beats(self) -> list[str]:
        keys = [f"beat/{rank}" for rank in range(self.world)]
        return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]

    def _beat(self, store: Store) -> None:
        number = 0
        while not self._end.wait(BEAT_S):
            number += 1
            try:
                store.set(f"beat/{self.rank}", f"{number} {self.collectives}")
            except RuntimeError:  # the store is gone: the rank's own exchanges will find that out
                return


def _in_time(ask: Callable[[], str]) -> str | None:
    """What the store answers in `STORE_S` seconds, or None: asked in a thread that may wait for ever."""
    answers: list[str] = []

    def wait() -> None:
        with suppress(RuntimeError):  # the store is gone: no answer
            answers.append(ask())

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(STORE_S)
    return answers[0] if answers else None
