"""Which ranks of a run are alive, and why the run ends: notes in the rendezvous' store.

A rank that dies leaves the others waiting in a collective, or with "connection closed". So every rank writes
a heartbeat to the store, from a thread of its own, and the rank that ends the run writes there why, once: then
each of the others can name the rank and the machine.
"""

import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

POLL_S = 0.05  # between two polls for the other ranks, at the rendezvous
BEAT_S = 1.0
SILENT_S = 5.0  # between two readings of the beats: a rank whose beat stands still is dead
STORE_S = 20.0  # for an answer of the store; on a network that is cut, TCP itself waits a quarter of an hour


class Store(Protocol):
    """The part of `torch.distributed.Store` used here: texts by name, on one machine, for all ranks."""

    def set_timeout(self, timeout: timedelta, /) -> None: ...
    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...
    def clone(self) -> "Store": ...


def rendezvous(store: Store, rank: int, world: int, timeout_s: float) -> str:
    """A name for this attempt of the run: the same on all ranks, and new at every restart.

    torchrun's store outlives a restart, with all that earlier ranks have left in it. So each rank sends a random
    number and waits for its answer; rank 0 answers every number that it finds, also an old one, until all ranks
    have acknowledged.

    Raises:
        TimeoutError: names the ranks that did not come.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + timeout_s
    store.set(f"hello/{rank}", own)
    attempt = own if rank == 0 else ""
    missing = [other for other in range(world) if other != rank] if rank == 0 else [0]
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {', '.join(map(str, missing))} did not arrive within {timeout_s:g} s")
        if rank == 0:
            for other in missing:
                if store.check([f"hello/{other}"]):
                    store.set(f"welcome/{other}/{store.get(f'hello/{other}').decode()}", attempt)
            missing = [other for other in missing if not store.check([f"thanks/{other}/{attempt}"])]
        elif store.check([f"welcome/{rank}/{own}"]):
            attempt, missing = store.get(f"welcome/{rank}/{own}").decode(), []
            store.set(f"thanks/{rank}/{attempt}", "")
        time.sleep(POLL_S)
    return attempt


class Heartbeat:
    """This rank's sign of life in the store, and its view of the other ranks."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        """store: of torchrun's rendezvous, which every rank reaches."""
        self.rank, self.world = rank, world
        self.collectives = 0
        """collectives that this rank has called: a rank behind the others keeps them waiting"""
        self._store, self._end = store, threading.Event()
        store.set_timeout(timedelta(seconds=STORE_S))
        store.set(f"name/{rank}", f"rank {rank} on {platform.node()}, process {os.getpid()}")
        threading.Thread(target=self._beat, args=(store.clone(),), daemon=True).start()

    def close(self) -> None:
        """Stop the beat."""
        self._end.set()

    def name(self, rank: int) -> str:
        """`rank 1 on host-b, process 4711`."""
        return self._store.get(f"name/{rank}").decode()

    def first_to_say(self, why: str) -> bool:
        """Note why the run ends; False when another rank noted it before. A lost store counts as True."""
        own = f"rank {self.rank}: {why}"
        said = _in_time(lambda: self._store.compare_set("why", "", own).decode())
        return said is None or said == own

    def why(self) -> str | None:
        """The reason that the rank that ended the run noted, with its name; None while there is none."""
        if not self._store.check(["why"]):
            return None
        rank, _, why = self._store.get("why").decode().partition(": ")
        return f"{self.name(int(rank.removeprefix('rank ')))}: {why}"

    def mark_done(self, what: str) -> None:
        """Note that this rank has done something that others wait for."""
        self._store.set(f"done/{what}/{self.rank}", "")

    def is_done(self, what: str, rank: int) -> bool:
        """Whether a rank has noted so."""
        return self._store.check([f"done/{what}/{rank}"])

    def dead_ranks(self) -> list[int]:
        """The ranks whose heartbeat has stopped; takes `SILENT_S` seconds."""
        before = self._beats()
        time.sleep(SILENT_S)
        after = self._beats()
        return [rank for rank in range(self.world) if before[rank] == after[rank]]

    def verdict(self) -> str:
        """Why a collective failed: the noted reason, the ranks that do not answer, or the ranks that missed it."""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return _in_time(self._verdict) or f"the rendezvous at {where} (rank 0's machine) no longer answers"

    def _verdict(self) -> str:
        if (said := self.why()) is not None:
            return said
        silent = self.dead_ranks()
        if (said := self.why()) is not None:
            return said
        if silent:
            return f"{', '.join(map(self.name, silent))}: no longer answers"
        counts = [int(beat.partition(" ")[2] or 0) for beat in self._beats()]
        late = [rank for rank, count in enumerate(counts) if count < max(counts)]
        if late:
            return f"{', '.join(map(self.name, late))}: is alive but missed the collective"
        return f"all {self.world} ranks are alive, but a collective failed or timed out"

    def _beats(self) -> list[str]:
        keys = [f"beat/{rank}" for rank in range(self.world)]
        return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]

    def _beat(self, store: Store) -> None:
        number, launcher = 0, os.getppid()
        while not self._end.wait(BEAT_S):
            number += 1
            if os.getppid() != launcher:  # it was killed: nobody would end this rank any more
                os.kill(os.getpid(), signal.SIGTERM)
                return
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
