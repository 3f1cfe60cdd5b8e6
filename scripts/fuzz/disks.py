"""Disks that are full, read-only or not ours."""

import ctypes
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from harness import SECONDS, Call, Case, Failed, call, judge
from world import World

NEW_NAMESPACE, NEW_USER = 0x00020000, 0x10000000
READ_ONLY, BIND, REMOUNT, PRIVATE, RECURSIVE = 1, 4096, 32, 1 << 18, 16384
NOBODY = 65534
CAPABILITY_VERSION = 0x20080522
OVERRIDING_RIGHTS = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
VERBS = ["data", "train", "eval", "report", "audit", "schedule", "lr-find", "predict"]
libc = ctypes.CDLL(None, use_errno=True)


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    while True:
        verb = draw.choice(VERBS)
        kind = draw.choice(["full", "full", "read-only", "not ours", "a file"])
        yield _case(
            world, verb, kind, draw.choice(["runs", "data"]), draw.choice([0, 4, 16, 64, 200, 400]) << 10
        )


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    if libc.mount(source.encode(), str(target).encode(), kind and kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _own_namespace() -> None:
    """Mounts that this process alone sees."""
    if os.geteuid():
        user, group = os.getuid(), os.getgid()
        if libc.unshare(NEW_USER | NEW_NAMESPACE):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    elif libc.unshare(NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", Path("/"), None, PRIVATE | RECURSIVE)


def _case(world: World, verb: str, kind: str, part: str, free_bytes: int) -> Case:
    def body(folder: Path) -> str:
        world.copy(folder, "data", "runs")
        words = [verb, *world.overrides(folder)]
        if verb == "train":
            words.append("run.name=new")
        if verb == "data":
            words.append("data.resize_px=48")
        if verb == "predict":
            words.insert(1, str(next(world.raw.glob("*/images/*/*.jpg"))))
        target = folder / part
        if kind == "a file":
            target.rename(folder / f"{part}.away")
            target.write_text("not a folder")
            verdict = judge(call(folder, *words))
            target.unlink()
            (folder / f"{part}.away").rename(target)
        else:
            verdict = judge(
                Call(folder, words, before=lambda: _restrict(target, kind, free_bytes)).end(SECONDS)
            )
        if kind == "not ours":
            _ours_again(target)
        again = call(folder, *words)
        if again.code != 0:
            raise Failed(f"with room again it does not go on: {again.explain()}")
        if verb == "train":
            models = [
                torch.load(path / "checkpoints/last.pt", weights_only=True)["model"]
                for path in (folder / "runs/new", world.run)
            ]
            if not all(torch.equal(models[0][key], models[1][key]) for key in models[0]):
                raise Failed("other weights than those of an undisturbed run")
        return verdict

    return Case(f"{verb}, {part} {kind} ({free_bytes} bytes free)", body)


def _restrict(target: Path, kind: str, free_bytes: int) -> None:
    restrict: dict[str, Callable[[], None]] = {
        "full": lambda: _overlay(target, free_bytes),
        "read-only": lambda: _read_only(target),
        "not ours": lambda: _not_ours(target),
    }
    restrict[kind]()


def _overlay(target: Path, free_bytes: int) -> None:
    """A small disk in the place of a folder, filled with the folder's content."""
    _own_namespace()
    content = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    pages = sum(-(-len(data) // 4096) + 1 for data in content.values()) + 64
    _mount("tmpfs", target, "tmpfs", 0, f"size={pages * 4096 + free_bytes}")
    for path, data in content.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(data)


def _read_only(target: Path) -> None:
    _own_namespace()
    _mount(str(target), target, None, BIND)
    _mount("none", target, None, BIND | REMOUNT | READ_ONLY)


def _not_ours(target: Path) -> None:
    """A folder of somebody else, who lets others read; a root user gives up his right to write all the same."""
    for path in [target, *target.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    rights = (ctypes.c_uint32 * 6)()
    if libc.capget(header, rights):
        raise OSError(ctypes.get_errno(), "capget")
    for position in range(3):
        rights[position] &= ~OVERRIDING_RIGHTS
    if libc.capset(header, rights):
        raise OSError(ctypes.get_errno(), "capset")


def _ours_again(target: Path) -> None:
    for path in [target, *target.rglob("*")]:
        os.chown(path, os.geteuid(), os.getegid())
        path.chmod(0o755 if path.is_dir() else 0o644)
