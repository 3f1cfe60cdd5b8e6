"""Two machines on this one: what happens to a training when the network between them is cut, or a rank is killed.

    sudo .venv/bin/python scripts/two_machines.py

Two network namespaces with host names, network cards and folders of their own, joined by a cable (a veth pair);
on each, one launcher with one rank (gloo, CPU). Needs root and iproute2; leaves nothing behind. What is
promised is checked, and the script ends with 1 where it does not hold.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
MACHINES = ("machine-a", "machine-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT_S = 15
JOB = [
    *("data.source=synthetic", "data.synthetic={species: 6, images_per_species: 20, train_per_species: 14}"),
    *("data.synthetic.long_side_px=64", "data.resize_px=40", "data.image_px=32"),
    *("model.name=test_resnet", "model.pretrained=false", "optim.batch_size=8", "optim.lr=0.02"),
    *("train.epochs=40", "train.precision=fp32", "train.device=cpu", "train.checkpoint_every_steps=1"),
    *("tracking.log_every_steps=1", f"distributed.timeout_s={TIMEOUT_S}"),
]


class Ended(NamedTuple):
    """How a launcher ended: exit code, seconds since the disturbance, and what it said."""

    code: int
    seconds: float
    said: str


def ip(*words: str) -> None:
    """Configure the network."""
    subprocess.run(["ip", *words], check=True)


def build_network() -> None:
    """Two namespaces and a cable between them."""
    ip("link", "add", "plumage0", "type", "veth", "peer", "name", "plumage1")
    for number, (machine, address) in enumerate(zip(MACHINES, ADDRESSES, strict=True)):
        ip("netns", "add", machine)
        ip("link", "set", f"plumage{number}", "netns", machine)
        ip("-n", machine, "addr", "add", f"{address}/24", "dev", f"plumage{number}")
        ip("-n", machine, "link", "set", f"plumage{number}", "up")
        ip("-n", machine, "link", "set", "lo", "up")


def remove_network() -> None:
    """Take them away; the cable goes with its ends."""
    for machine in MACHINES:
        subprocess.run(["ip", "netns", "delete", machine], check=False, capture_output=True)


def cable(state: str) -> None:
    """Plug the cable in ("up"), or pull it ("down"), at the second machine."""
    ip("-n", MACHINES[1], "link", "set", "plumage1", state)


class Job:
    """One command on both machines, each in a folder of its own."""

    def __init__(self, folder: Path, name: str, verb: str, nodes: str = "2", restarts: int = 0) -> None:
        self.folder, self.name = folder, name
        # The same command, given again, goes on in the same log.
        self.said_before = [path.stat().st_size if path.is_file() else 0 for path in map(self._log, range(2))]
        self.processes = [self._start(number, verb, nodes, restarts) for number in range(2)]

    def _start(self, number: int, verb: str, nodes: str, restarts: int) -> subprocess.Popen[bytes]:
        own = self.folder / MACHINES[number]
        own.mkdir(exist_ok=True)
        launcher = [sys.executable, "-m", "pipeline.launch", f"--nnodes={nodes}", "--nproc-per-node=1"]
        launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400", f"--rdzv-id={self.name}"]
        # Which machine holds the rendezvous is found by its host name, and these have none that resolves.
        launcher += [f"--rdzv-conf=is_host={1 - number},join_timeout=60,last_call_timeout=5"]
        launcher += [f"--local-addr={ADDRESSES[number]}", f"--max-restarts={restarts}"]
        places = [f"data.root={own / 'data'}", f"run.root={own / 'runs'}", f"run.name={self.name}"]
        words = [*launcher, verb, *JOB, *places]
        inside = f"hostname {MACHINES[number]} && exec " + " ".join(f"'{word}'" for word in words)
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"plumage{number}", "OMP_NUM_THREADS": "1"}
        with self._log(number).open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", MACHINES[number], "unshare", "--uts", "sh", "-c", inside],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _log(self, number: int) -> Path:
        return self.folder / f"{self.name}-{MACHINES[number]}.log"

    def reaches(self, step: int) -> None:
        """Wait until a step is logged."""
        log = self.folder / MACHINES[0] / "runs" / self.name / "log.jsonl"
        wait_until(lambda: log.is_file() and f'"step": {step},' in log.read_text(), self.processes)

    def kill_rank(self, number: int) -> None:
        """Kill the rank on a machine by a signal that it cannot answer."""
        launcher = self.processes[number].pid
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    def ends(self) -> list[Ended]:
        """Wait for both launchers."""
        begun, ended = time.monotonic(), {}
        while len(ended) < 2:
            for number, process in enumerate(self.processes):
                if number not in ended and process.poll() is not None:
                    said = self._log(number).read_bytes()[self.said_before[number] :].decode()
                    ended[number] = Ended(process.returncode, time.monotonic() - begun, said)
            if time.monotonic() - begun > 300:
                for process in self.processes:
                    process.kill()
                raise SystemExit(f"{self.name}: a launcher did not end in 300 s; see {self.folder}")
            time.sleep(0.1)
        return [ended[0], ended[1]]

    def weights(self) -> dict[str, torch.Tensor]:
        """The last checkpoint's, which the first rank wrote, whichever machine that is on."""
        (path,) = self.folder.glob(f"machine-*/runs/{self.name}/checkpoints/last.pt")
        model: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
        return model


def wait_until(holds: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for something while the launchers run."""
    while not holds():
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a launcher ended before anything was done to it; see its log")
        time.sleep(0.01)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Report:
    """What was promised and whether it held."""

    def __init__(self) -> None:
        self.broken = 0

    def outcome(self, title: str, ended: list[Ended]) -> None:
        """Say how both launchers ended, and which ranks they named."""
        print(f"\n{title}")
        for machine, (code, seconds, said) in zip(MACHINES, ended, strict=True):
            print(f"  {machine}: exit code {code} after {seconds:.1f} s")
            for line in said.splitlines():
                if line.startswith(("error:", "stopped")):
                    print(f"    {line}")

    def check(self, promise: str, holds: bool) -> None:
        """Note one promise."""
        self.broken += not holds
        print(f"  {'holds' if holds else 'BROKEN'}: {promise}", flush=True)


def scenarios(folder: Path, report: Report) -> None:
    """Undisturbed, a cable pulled, a rank killed, and a machine that goes on alone."""
    ended = Job(folder, "data", "data").ends()
    report.outcome("Each machine builds the data on its own disk", ended)
    tables = [*folder.glob("machine-*/data/*/samples*.csv")]
    report.check(
        "two sample tables, the same", len(tables) == 2 and len({t.read_bytes() for t in tables}) == 1
    )

    whole = Job(folder, "undisturbed", "train")
    report.outcome("A training that nothing happens to", ended := whole.ends())
    report.check("both launchers end with 0", [end.code for end in ended] == [0, 0])

    job = Job(folder, "cut", "train")
    job.reaches(15)
    cable("down")
    report.outcome("The cable is pulled after step 15", ended := job.ends())
    report.check("both end with 75", [end.code for end in ended] == [75, 75])
    report.check(
        "the first machine names the rank and the host that are gone", "on machine-b" in ended[0].said
    )
    cable("up")
    ended = Job(folder, "cut", "train").ends()
    report.outcome("It is plugged in, and the same command is given again", ended)
    report.check("both end with 0", [end.code for end in ended] == [0, 0])
    report.check(
        "the weights are those of the undisturbed run, to the bit", same(job.weights(), whole.weights())
    )

    job = Job(folder, "killed", "train", restarts=1)
    job.reaches(15)
    job.kill_rank(1)
    report.outcome(
        "The rank on the second machine is killed after step 15; one restart is allowed", ended := job.ends()
    )
    report.check("the first machine names it", "on machine-b" in ended[0].said)
    report.check("the job goes on by itself, and ends with 0", [end.code for end in ended] == [0, 0])
    report.check(
        "the weights are those of the undisturbed run, to the bit", same(job.weights(), whole.weights())
    )

    job = Job(folder, "alone", "train", nodes="1:2", restarts=3)
    job.reaches(15)
    cable("down")
    report.outcome(
        "The cable is pulled, one machine is allowed to go on alone (--nnodes 1:2)", ended := job.ends()
    )
    report.check("the machine with the rendezvous goes on and ends with 0", ended[0].code == 0)
    report.check("the other one ends with 75", ended[1].code == 75)


def main() -> int:
    """Run all, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep folders and logs")
    keep = parser.parse_args().keep
    if os.geteuid() or shutil.which("ip") is None:
        print("network namespaces need root and the program `ip` (package iproute2)", file=sys.stderr)
        return 2
    folder, report = Path(tempfile.mkdtemp(prefix="two-machines-")), Report()
    remove_network()
    build_network()
    try:
        scenarios(folder, report)
    finally:
        remove_network()
        if keep or report.broken:
            print(f"\nlogs are in {folder}")
        else:
            shutil.rmtree(folder)
    print(f"\n{report.broken} promises broken")
    return int(report.broken > 0)


if __name__ == "__main__":
    sys.exit(main())
