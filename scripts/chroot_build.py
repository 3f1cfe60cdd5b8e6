"""Build the Dockerfile without Docker: its instructions, in order, in a clean Debian root.

    sudo python scripts/chroot_build.py [--root FOLDER] [--keep] [--build-arg NAME=VALUE] [-- COMMAND]

For a machine without a Docker daemon. The Dockerfile is parsed and followed line by line, so that it and this check
cannot drift apart; an instruction that is not known here is an error. FROM debian:RELEASE is debootstrap's RELEASE,
and each stage is a folder. At the end COMMAND runs as the image's user (`make smoke`, if none is given), and once
more as a user id without a name.

Needs root, debootstrap, util-linux's unshare, and dockerfile-parse (the extra `dev`). What differs from Docker: the
network, the kernel and /dev are the machine's own, and pip is configured as on the machine. So this shows that the
instructions work and that the image's content is whole; it shows nothing about a container's runtime, or a GPU.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser

CONTEXT = Path(__file__).parent.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOBODY_IN_PARTICULAR = "23456:23456"
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")


class Stage:
    """A stage of the build: a root folder, and what its instructions have set so far."""

    def __init__(self, root: Path, machine: "Machine") -> None:
        self.root, self.machine = root, machine
        self.environment = {"PATH": PATH}
        self.arguments: dict[str, str] = {}
        self.user, self.folder = "0", "/"
        self.shell, self.entrypoint = ["/bin/sh", "-c"], list[str]()

    def expand(self, text: str) -> str:
        """The text with $NAME and ${NAME} replaced, as in every instruction but RUN."""
        return Template(text).substitute({**self.arguments, **self.environment})

    def run(self, words: list[str], user: str | None = None) -> None:
        """Run a command in the root, with the machine's pip configuration beside the stage's own environment."""
        uid = self.root_id(user or self.user)
        inside = ["chroot", f"--userspec={uid}", str(self.root), "/usr/bin/env", "-i"]
        settings = {**self.machine.pip, **self.arguments, **self.environment}
        inside += [f"{name}={value}" for name, value in settings.items()]
        inside += ["/bin/sh", "-c", 'cd "$0" && exec "$@"', self.folder, *words]
        mounts = [f"mount --rbind /dev {self.root}/dev", f"mount -t proc proc {self.root}/proc"]
        script = " && ".join([*mounts, *self.machine.mount(self.root), "exec " + shlex.join(inside)])
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]  # what is mounted goes with it
        if code := subprocess.run([*unshare, "sh", "-c", script], check=False).returncode:
            sys.exit(f"exit code {code} of: {shlex.join(words)}")

    def root_id(self, user: str) -> str:
        """UID:GID of a user of the root, by name or number."""
        if ":" in user:
            return user
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if user in (name, uid):
                return f"{uid}:{gid}"
        return f"{user}:0"


class Machine:
    """What the build takes from the machine it runs on: a Debian mirror, the resolver, and how pip finds packages."""

    def __init__(self) -> None:
        listed = "".join(Path(path).read_text() for path in SOURCES if Path(path).is_file())
        found = re.search(r"^(?:URIs:|deb)\s+(?:\[.*?\]\s+)?(https?://\S+)", listed, re.MULTILINE)
        if not found:
            sys.exit(f"no Debian mirror in {' or '.join(SOURCES)}; run this on Debian")
        self.mirror = found[1]
        self.mounts = {Path("/etc/resolv.conf"): "etc/resolv.conf", Path("/etc/hosts"): "etc/hosts"}
        asked = [sys.executable, "-m", "pip", "config", "list"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        self.pip = {
            "PIP_" + name.replace("-", "_").upper(): " ".join(map(self._inside, value.split()))
            for name, value in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", said, re.MULTILINE)
        }

    def _inside(self, word: str) -> str:
        """A path of pip's configuration, as a command in the root sees it; any other word as it is."""
        path = Path(word.removeprefix("file://"))
        if not path.is_absolute() or not path.exists():
            return word
        # An index refers to its files relative to itself: mount its neighbours too.
        seen = path.parent if word.startswith("file://") else path
        self.mounts[seen] = f"mnt{seen}"
        return word.replace(str(path), f"/mnt{path}")

    def mount(self, root: Path) -> list[str]:
        """The shell commands that show these files to a command in the root."""
        for path, place in self.mounts.items():
            target = root / place
            (target if path.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                target.touch()
        return [f"mount --bind {path} {root / place}" for path, place in self.mounts.items()]


class Build:
    """The instructions of the Dockerfile, one method each."""

    def __init__(self, folder: Path, arguments: dict[str, str]) -> None:
        self.folder, self.given, self.machine = folder, arguments, Machine()
        self.stages: dict[str, Stage] = {}
        self.before_from: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.stop_signal, self.command = "SIGTERM", list[str]()

    @property
    def stage(self) -> Stage:
        """The stage that is being built."""
        return next(reversed(self.stages.values()))

    def follow(self, dockerfile: Path) -> None:
        """Carry out every instruction.

        Raises:
            SystemExit: an instruction, or a flag of one, is not known here.
        """
        with dockerfile.open("rb") as stream:
            instructions = DockerfileParser(fileobj=stream).structure
        for instruction in instructions:
            name, value = instruction["instruction"], instruction["value"]
            if name == "COMMENT":
                continue
            print(f"--- line {instruction['startline'] + 1}: {name} {value}"[:160], flush=True)
            began = time.monotonic()
            step = getattr(self, {"FROM": "from_"}.get(name, name.lower()), None)
            if step is None:
                sys.exit(f"{dockerfile}: {name} is not known to {Path(__file__).name}; teach it")
            step(value)
            if name in ("FROM", "RUN", "COPY"):
                print(f"    {time.monotonic() - began:.0f} s", flush=True)

    def arg(self, value: str) -> None:
        name, _, default = value.partition("=")
        default = self.given.get(name, "".join(shlex.split(default)))
        (self.stage.arguments if self.stages else self.before_from)[name] = default

    def from_(self, value: str) -> None:
        words = Template(value).substitute(self.before_from).split()
        image, name = words[0], words[2] if len(words) > 1 else str(len(self.stages))
        found = re.fullmatch(r"debian:([a-z]+)(-slim)?", image)
        if not found:
            sys.exit(f"FROM {image}: only debian:RELEASE can be made here, by debootstrap")
        clean = self.folder / found[1]
        if not clean.exists():
            part = clean.with_name(clean.name + ".part")
            debootstrap = ["debootstrap", "--variant=minbase", found[1], str(part), self.machine.mirror]
            subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL)
            part.rename(clean)
        root = self.folder / name
        subprocess.run(["cp", "--archive", str(clean), str(root)], check=True)
        self.stages[name] = Stage(root, self.machine)

    def shell(self, value: str) -> None:
        self.stage.shell = json.loads(value)

    def env(self, value: str) -> None:
        pairs = [word.partition("=") for word in shlex.split(value)]
        self.stage.environment |= {name: self.stage.expand(text) for name, _, text in pairs}

    def label(self, value: str) -> None:
        pairs = [word.partition("=") for word in shlex.split(value)]
        self.labels |= {name: self.stage.expand(text) for name, _, text in pairs}

    def workdir(self, value: str) -> None:
        self.stage.folder = str(Path(self.stage.folder) / self.stage.expand(value))
        (self.stage.root / self.stage.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def user(self, value: str) -> None:
        self.stage.user = self.stage.expand(value)

    def run(self, value: str) -> None:
        if value.startswith(("--", "[")):
            sys.exit(f"RUN {value}: flags and the exec form are not known here")
        self.stage.run([*self.stage.shell, value])

    def copy(self, value: str) -> None:
        words = self.stage.expand(value).split()
        flags = dict(word[2:].split("=") for word in words if word.startswith("--"))
        *sources, place = [word for word in words if not word.startswith("--")]
        target = self.stage.root / str(Path(self.stage.folder) / place).lstrip("/")
        if flags.keys() == {"from"} and len(sources) == 1:
            source = self.stages[flags["from"]].root / sources[0].lstrip("/")
            subprocess.run(["cp", "--archive", str(source), str(target)], check=True)
        elif not flags:
            for path in sorted(self.context()):
                for source in sources:
                    whole = source in (".", "./")
                    if whole or path == Path(source):
                        copied = target / path if whole or place.endswith("/") else target
                        copied.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(CONTEXT / path, copied)
        else:
            sys.exit(f"COPY {value}: only `--from=STAGE ONE PLACE` and `FILES PLACE` are known here")

    def stopsignal(self, value: str) -> None:
        self.stop_signal = value

    def entrypoint(self, value: str) -> None:
        self.stage.entrypoint = json.loads(value)

    def cmd(self, value: str) -> None:
        self.command = json.loads(value)

    def context(self) -> Iterator[Path]:
        """The files below the Dockerfile's folder that .dockerignore lets in."""
        lines = (CONTEXT / ".dockerignore").read_text().splitlines()
        patterns = [line for line in lines if line and not line.startswith("#")]
        for folder, _, names in os.walk(CONTEXT):
            for name in names:
                path = (Path(folder) / name).relative_to(CONTEXT)
                if not ignored(path, patterns):
                    yield path


def ignored(path: Path, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a file out: the last pattern that fits it, or a folder above it, decides."""
    above = [str(one) for one in (path, *path.parents[:-1])]
    out = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        anywhere = plain.removeprefix("**/")
        names = [Path(one).name for one in above] if anywhere != plain else above
        if any(fnmatch(name, anywhere) for name in names):
            out = not pattern.startswith("!")
    return out


def main() -> None:
    """Build, then run the command as the image's user and as another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, help="an empty folder for the stages; a temporary one by default"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder where it is")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs="*", help="make smoke, if none is given")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("chroot needs root: sudo python scripts/chroot_build.py")
    folder = (asked.root or Path(tempfile.mkdtemp(prefix="plumage-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder}: is not empty, and would be removed at the end; give another --root")
    try:
        build = Build(folder, dict(word.split("=", 1) for word in asked.build_arg))
        build.follow(CONTEXT / "Dockerfile")
        command = [*build.stage.entrypoint, *(asked.command or ["make", "smoke"])]
        for user in (build.stage.user, NOBODY_IN_PARTICULAR):
            print(f"--- {shlex.join(command)} as {user}", flush=True)
            build.stage.run(command, user)
        print("the Dockerfile builds, and its command passes")
    finally:
        if not asked.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
