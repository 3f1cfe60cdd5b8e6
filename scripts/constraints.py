"""Write constraints.txt: the exact versions of what the program needs to run, as installed here.

And constraints-serve.txt: of what `plumage serve` needs, which is no torch.

    python -m venv /tmp/lock && /tmp/lock/bin/pip install '.[serve]' && /tmp/lock/bin/python scripts/constraints.py

With Python 3.11 or newer. The CUDA libraries (nvidia-*, cuda-*, triton) are left out: torch pins its own, and a
build of torch for the CPU has none.
"""

import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.common import files  # noqa: E402

SERVING = "jinja2", "numpy", "opencv-python-headless", "pillow", "pydantic", "rich"
"""the dependencies that `serve` imports, beside those of its extra"""
OF_TORCH = re.compile(r"nvidia-|cuda-|triton")
HEADER = "# Exact versions of a working installation, for the image; made by scripts/constraints.py.\n"


def closure(names: list[str]) -> dict[str, str]:
    """The versions of these packages and of all they need on this machine, by normalised name."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if OF_TORCH.match(name) or (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        package = distribution(wanted.name)
        found[name] = package.version.partition("+")[0]
        chosen = [{"extra": extra} for extra in ("", *wanted.extras)]
        needed = [Requirement(line) for line in package.requires or []]
        waiting += [one for one in needed if not one.marker or any(map(one.marker.evaluate, chosen))]
    return found


def main() -> None:
    """Write the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    served = [*SERVING, *project["optional-dependencies"]["serve"]]
    for name, needed in (("constraints.txt", project["dependencies"]), ("constraints-serve.txt", served)):
        lines = [f"{package}=={version}\n" for package, version in sorted(closure(needed).items())]
        files.write_text(ROOT / name, HEADER + "".join(lines))
        print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
