"""Kill a training again and again, and see whether it ends as one that was never killed.

    python scripts/kill_test.py [--kills 20] [--seed 0] [--folder DIR]

A small training on drawn birds, with mixup, an average of the weights, a plateau schedule and a switch
from Adam to SGD, is killed by SIGKILL at random moments: within a step, within the write of a checkpoint,
within validation. Each time the same command resumes. At the end the weights have to be identical bit
for bit, and the log line for line but for what the clock says. Exit code 1 if they are not.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS_PER_EPOCH, EPOCHS = 7, 14
LAST_STEP = STEPS_PER_EPOCH * EPOCHS
OVERRIDES = [
    "data.source=synthetic",
    "data.synthetic={species: 6, images_per_species: 16, train_per_species: 10, long_side_px: 64}",
    "data.val_fraction=0.3",
    "data.resize_px=40",
    "data.image_px=32",
    "model={name: test_resnet, pretrained: false}",
    "optim={batch_size: 6, phases: [{name: adam, lr: 2e-3, until: 5}, {name: sgd, lr: 0.02, carry_momentum: true}]}",
    "schedule={name: plateau, patience_epochs: 1, gamma: 0.5, warmup_epochs: 1}",
    "train.mix=[{name: mixup, alpha: 0.4, probability: 0.7}, {name: snapmix, probability: 0.3}]",
    f"train.epochs={EPOCHS}",
    "train.ema_decay=0.9",
    "train.checkpoint_every_steps=3",
    "train.keep_checkpoints=2",
    "train.precision=fp32",
    "train.device=cpu",
    "tracking.log_every_steps=1",
]
CLOCK = ("time", "seconds", "cpu_seconds", "images_per_s", "data_wait", "memory_gib")
DEADLINE_S = 120.0


class Victim:
    """A run and the processes that are killed on its way."""

    def __init__(self, folder: Path, name: str) -> None:
        self.run = folder / "runs" / name
        places = [f"data.root={folder / 'data'}", f"run.root={folder / 'runs'}", f"run.name={name}"]
        self.words = [sys.executable, "-m", "pipeline", "train", *OVERRIDES, *places]

    def to_its_end(self) -> None:
        """Run without being killed."""
        subprocess.run(self.words, check=True, capture_output=True)

    def until(self, moment: Callable[[], bool]) -> bool:
        """Start the command and kill it at a moment; whether the moment came before its end."""
        child = subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + DEADLINE_S
        while not moment():
            if child.poll() is not None:
                assert child.stderr is not None
                assert child.returncode == 0, child.stderr.read().decode()
                return False
            assert time.monotonic() < deadline, "the moment does not come"
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        return True

    def log(self) -> list[dict[str, Any]]:
        """The whole records of the log so far."""
        path = self.run / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def step(self) -> int:
        """The last step that stands in the log."""
        return max((record["step"] for record in self.log()), default=0)

    def saved_step(self) -> int:
        """The step of the last checkpoint."""
        path = self.run / "checkpoints" / "last.pt"
        return int(torch.load(path, weights_only=True)["step"]) if path.is_file() else 0

    def is_writing(self) -> bool:
        """Whether a checkpoint is half written."""
        return any((self.run / "checkpoints").glob("*.pt.*.part"))


def kill_within_a_step(victim: Victim, draw: random.Random) -> bool:
    """Some steps after the last checkpoint, and a fraction of a step later."""
    target = victim.saved_step() + draw.randint(1, STEPS_PER_EPOCH)
    wait_s = draw.uniform(0, 0.02)

    def moment() -> bool:
        if target > LAST_STEP or victim.step() < target:
            return False
        time.sleep(wait_s)
        return True

    return victim.until(moment)


def kill_within_a_write(victim: Victim, draw: random.Random) -> bool:
    """While a checkpoint is written: what is half written is left behind."""
    skip = draw.randint(0, 2)
    seen = victim.saved_step()

    def moment() -> bool:
        return victim.step() > seen + 3 * skip and victim.is_writing()

    return victim.until(moment) and victim.is_writing()


def kill_within_validation(victim: Victim, draw: random.Random) -> bool:
    """After the last step of an epoch, before its line in the log."""
    epoch = victim.saved_step() // STEPS_PER_EPOCH + draw.randint(1, 2)
    killed = victim.until(lambda: victim.step() >= epoch * STEPS_PER_EPOCH)
    last = victim.log()[-1]
    return killed and (last["kind"], last["step"]) == ("step", epoch * STEPS_PER_EPOCH)


KINDS = {
    "within a step": kill_within_a_step,
    "within a checkpoint's write": kill_within_a_write,
    "within validation": kill_within_validation,
}


def same(one: Victim, other: Victim) -> list[str]:
    """What differs between two finished runs, in words."""
    wrong = []
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run.run / "checkpoints" / name, weights_only=True) for run in (one, other))
        for key in ("model", "ema"):
            if not all(
                torch.equal(a[key][tensor], b[key][tensor]) for tensor in a[key].keys() | b[key].keys()
            ):
                wrong.append(f"{key} of {name}")
        if (a["phase"], a["best"], a["step"]) != (b["phase"], b["best"], b["step"]):
            wrong.append(f"phase, best or step of {name}")
    logs = [
        [{k: v for k, v in record.items() if k not in CLOCK} for record in run.log()] for run in (one, other)
    ]
    if logs[0] != logs[1]:
        wrong.append("log.jsonl")
    return wrong


def main() -> int:
    """Kill, go on, compare; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs stay; without it they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        calm, victim = Victim(folder, "calm"), Victim(folder, "victim")
        data = [sys.executable, "-m", "pipeline", "data", *OVERRIDES, f"data.root={folder / 'data'}"]
        subprocess.run(data, check=True, capture_output=True)
        calm.to_its_end()
        draw, kinds = random.Random(arguments.seed), list(KINDS)
        counts: Counter[str] = Counter()
        while sum(counts.values()) < arguments.kills:
            kind = kinds[sum(counts.values()) % len(kinds)]
            if KINDS[kind](victim, draw):
                counts[kind] += 1
                print(
                    f"kill {sum(counts.values()):2}: {kind}, log at step {victim.step()} of {LAST_STEP}",
                    flush=True,
                )
            elif victim.saved_step() >= LAST_STEP:
                print(f"the run ended after {sum(counts.values())} kills; take fewer")
                return 1
        victim.to_its_end()
        wrong = same(calm, victim)
        killed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        switches = [record["phase"] for record in victim.log() if record["kind"] == "phase"]
        print(
            f"{sum(counts.values())} kills ({killed}); {len(victim.log())} log lines, switches to {switches}"
        )
        print("differs: " + ", ".join(wrong) if wrong else "weights, average, phase and log are identical")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
