"""What only a GPU can show: speeds, waits, losses beside a CPU's, memory, runs that resume.

    python scripts/gpu_check [--tiny] [--budget 520] [--only CHECK ...] [--folder DIR] [--out FILE]
    python scripts/gpu_check --table FILE

Prints a line of JSON for each thing measured, cheapest and most telling first, and at the end a verdict on each goal.
It needs no network: the network has drawn weights, the images are drawn birds. A check that no longer fits into the
budget (seconds) is left out, and said to be. Exit code 1 if a goal is missed or a check fails.

--tiny runs all of it small, on a CPU too, where speeds are not judged. --table makes the tables of docs/gpu.md from
the lines of an earlier run.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import queue
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # this process starts no CUDA: checks are forked from it
sys.path.insert(0, str(Path(__file__).parents[2]))

import verdicts

CHECKS = {  # the module of each, and the seconds that it may take on a GPU, at most
    "ceiling": ("speed", 20),
    "syncs": ("exactness", 60),
    "parity": ("exactness", 60),
    "nccl": ("exactness", 60),
    "auto": ("exactness", 60),
    "step": ("speed", 150),
    "loader": ("speed", 60),
    "evaluation": ("speed", 40),
    "resume": ("runs", 90),
    "half": ("runs", 90),
    "compiled": ("speed", 240),
    "whole_runs": ("runs", 180),
    "graphs": ("speed", 150),
}
Row = dict[str, Any]
TINY_S = 600


def machine(setting: Any) -> Row:
    """The device and the versions that its numbers belong to."""
    import torch

    row: Row = {"check": "machine", "device": "cpu", "cores": len(os.sched_getaffinity(0))}
    if setting.on_gpu:
        row["device"] = torch.cuda.get_device_name(0)
    return row | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "model": setting.model,
        "image_px": setting.image_px,
        "batch_size": setting.batch_size,
    }


def run_check(name: str, setting: Any, rows: Any) -> None:
    """In a process of its own: hand over its rows, then its end."""
    try:
        if name == "machine":
            found = [machine(setting)]
        else:
            found = getattr(importlib.import_module(CHECKS[name][0]), name)(setting)
        for row in found:
            rows.put({"check": name, **row})
        rows.put(None)
    except Exception as error:
        traceback.print_exc()
        rows.put({"check": name, "case": "failed", "error": f"{type(error).__name__}: {error}"[:500]})
        rows.put(None)


def collect(name: str, setting: Any, timeout_s: float) -> list[Row]:
    """The rows of a check, printed as they come; the last one says that it failed, where it did."""
    context = multiprocessing.get_context("fork")
    rows: Any = context.Queue()
    process = context.Process(target=run_check, name=name, args=(name, setting, rows))
    began = time.monotonic()
    process.start()
    found: list[Row] = []
    while (row := _next(rows, process, began + timeout_s)) is not None:
        found.append({**row, "at_s": round(time.monotonic() - began, 1)})
        print(json.dumps(found[-1]), flush=True)
        if "error" in row:
            break
    process.join(5)
    process.kill()
    return found


def _next(rows: Any, process: Any, deadline: float) -> Row | None:
    while True:
        try:
            row: Row | None = rows.get(timeout=1)
            return row
        except queue.Empty:
            name, case = process.name, {"case": "failed"}
            if time.monotonic() > deadline:
                return {"check": name, **case, "error": "took too long"}
            if not process.is_alive():
                return {"check": name, **case, "error": f"ended with code {process.exitcode}"}


def main() -> int:
    """Run what the command line says; the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, on whatever device there is")
    parser.add_argument("--budget", type=float, default=520, help="seconds in all")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument(
        "--folder", type=Path, help="for drawn birds and runs, which stay; else a temporary one"
    )
    parser.add_argument("--out", type=Path, help="file for the lines of JSON, too")
    parser.add_argument(
        "--table", type=Path, help="print the tables of an earlier run's lines; measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.table:
        rows = [json.loads(line) for line in arguments.table.read_text().splitlines()]
        print(verdicts.tables(rows))
        return 0
    return check(arguments.only or list(CHECKS), arguments)


def check(names: list[str], arguments: argparse.Namespace) -> int:
    """Run checks; the exit code."""
    import torch
    from setting import Setting

    has_gpu = torch.cuda.is_available()
    if not (has_gpu or arguments.tiny):
        print(
            "error: no CUDA device is visible; on a CPU, --tiny shows that the checks work", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="plumage-gpu-check-") as temporary:
        folder = arguments.folder or Path(temporary)
        setting = Setting(torch.device("cuda" if has_gpu else "cpu"), arguments.tiny, folder.resolve())
        rows = measure(setting, names, arguments.budget)
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = verdicts.judge(rows, on_gpu=setting.on_gpu)
    print(verdicts.table(judged))
    failed = any("error" in row for row in rows) or any(verdict.met is False for verdict in judged)
    return 1 if failed else 0


def measure(setting: Any, names: list[str], budget_s: float) -> list[Row]:
    """The rows of the checks that the budget has room for."""
    from pipeline.common import console
    from pipeline.data import prepare

    for module in {module for module, _ in CHECKS.values()}:
        importlib.import_module(module)  # once, and not in the process of each check
    began = time.monotonic()
    rows = collect("machine", setting, TINY_S)
    console.mute()
    prepare.prepare(setting.config())
    for name in names:
        left = budget_s - (time.monotonic() - began)
        most = TINY_S if setting.tiny else CHECKS[name][1]
        if not setting.tiny and left < most / 2:
            rows.append({"check": name, "case": "left out", "seconds_left": round(left)})
            print(json.dumps(rows[-1]), flush=True)
            continue
        rows += collect(name, setting, min(most, left) if not setting.tiny else most)
    return rows


if __name__ == "__main__":
    sys.exit(main())
