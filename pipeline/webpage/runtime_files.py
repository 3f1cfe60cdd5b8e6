"""onnxruntime-web (npm, MIT), the engine of the page without a server: fetched once by npm, and kept."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipeline.common import console, files
from pipeline.common.errors import DataError

NAME, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
NPM_S = 600.0


@dataclass(frozen=True)
class Engine:
    """Bytes of an ES module, and of the WebAssembly that it runs."""

    module: bytes
    wasm: bytes


def engine() -> Engine:
    """The engine, verified by its digests; npm fetches it where it is not kept yet.

    Raises:
        DataError: it is not kept, and npm is missing or fails.
    """
    folder = kept_folder()
    if not all(_is_whole(folder, name) for name in SHA256):
        _fetch(folder)
    module, wasm = ((folder / name).read_bytes() for name in SHA256)
    return Engine(module, wasm)


def kept_folder() -> Path:
    """Where the engine is kept: below $XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "plumage" / f"{NAME}-{VERSION}"


def _is_whole(folder: Path, name: str) -> bool:
    path = folder / name
    return path.is_file() and files.digest_of_file(path) == SHA256[name]


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    by_hand = f"or put {' and '.join(SHA256)} of {NAME} {VERSION} into {folder}"
    if npm is None:
        raise DataError(
            f"page: needs {NAME} {VERSION}, which npm fetches, but npm is not installed; install npm, {by_hand}"
        )
    console.say(f"page  npm fetches {NAME} {VERSION}, once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        for part in ("package.json", "package-lock.json"):
            content = resources.files("pipeline.webpage").joinpath("runtime", part).read_bytes()
            (work / part).write_bytes(content)
        words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(words, cwd=work, capture_output=True, text=True, check=False, timeout=NPM_S)
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"page: npm did not fetch {NAME} {VERSION} within {NPM_S:.0f} s; run again with a better connection, "
                f"{by_hand}"
            ) from error
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if line.strip()), "no reason given")
            raise DataError(f"page: npm cannot fetch {NAME} {VERSION} ({said}); fix that, {by_hand}")
        fetched = work / "node_modules" / NAME / "dist"
        if wrong := [part for part in SHA256 if not _is_whole(fetched, part)]:
            raise DataError(
                f"page: npm brought a different {' and '.join(wrong)} of {NAME} {VERSION} from what is known here; "
                "ask whoever runs your registry"
            )
        with files.replacing_folder(folder) as kept:
            for part in SHA256:
                shutil.copyfile(fetched / part, kept / part)
