"""What runs on other machines: scripts, manifests and the image are held against their formats and against the code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.cli.arguments import parse
from pipeline.serving.limits import HEAD_S
from pipeline.serving.serve import TOKEN
from scripts import chroot_build
from tests.helpers import tiny

ROOT = Path(__file__).parent.parent
PLACES = "scripts", "tests/fake_slurm"
SHELL = [
    path
    for place in PLACES
    for path in sorted((ROOT / place).rglob("*"))
    if path.is_file() and path.read_bytes()[:32].startswith((b"#!/usr/bin/env bash", b"#!/bin/bash"))
]
MANIFESTS = sorted((ROOT / "scripts/k8s").glob("*.yaml"))
BIN = Path(sys.executable).parent
OPTIONAL = {"pillow-heif", "sniffio"}
"""what is imported where it is installed"""


def check(*words: str | Path) -> None:
    """Run a checker that stands beside this Python; what it says is the assertion's message."""
    done = tiny.launch([str(BIN / words[0]), *map(str, words[1:])], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shell_scripts_are_found() -> None:
    assert {path.name for path in SHELL} >= {"train.sbatch", "docker_run.sh", "scontrol"}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_clean(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    check("shellcheck", path)


def test_the_dockerfile_is_clean() -> None:
    check("hadolint", "--failure-threshold", "info", "Dockerfile")


def test_compose_and_kubernetes_files_fit_their_schemas() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    check("kubernetes-validate", "--strict", *MANIFESTS)


# What a schema does not see


def documents(name: str) -> dict[str, dict]:
    """The objects of a manifest by kind."""
    loaded = yaml.safe_load_all((ROOT / "scripts/k8s" / name).read_text())
    return {document["kind"]: document for document in loaded}


def test_the_pods_of_a_training_find_one_another() -> None:
    job, service = (documents("train.yaml")[kind] for kind in ("Job", "Service"))
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    args = dict(word.lstrip("-").split("=", 1) for word in container["args"] if word.startswith("--n"))
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(args["nnodes"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--master-addr={name}-0.{pod['subdomain']}" in container["args"]
    assert f"--master-port={service['spec']['ports'][0]['port']}" in container["args"]
    assert int(args["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("manifest", ["data.yaml", "train.yaml"])
def test_a_job_ends_at_what_only_a_person_can_mend_and_goes_on_after_a_stop(manifest: str) -> None:
    job = documents(manifest)["Job"]["spec"]
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions[2] == "FailJob"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # the policy asks for it
    if manifest == "train.yaml":
        assert actions[75] == "Ignore"


def test_a_served_model_is_found_probed_and_given_the_time_to_end() -> None:
    deployment, service = (documents("serve.yaml")[kind]["spec"] for kind in ("Deployment", "Service"))
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == service["selector"] == deployment["selector"]["matchLabels"]
    [port] = container["ports"]
    assert service["ports"][0]["targetPort"] == port["name"]
    _, arguments = parse(["serve", *container["args"]])
    assert (arguments.port, arguments.host) == (port["containerPort"], "0.0.0.0")
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == arguments.positionals
    longest = arguments.drain_seconds + arguments.seconds + HEAD_S
    assert pod["terminationGracePeriodSeconds"] > longest
    probed = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")}
    assert probed == {"readiness": "/readyz", "liveness": "/healthz"}
    assert container["env"][0]["name"] == TOKEN
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_image_of_the_server_is_one_that_its_arguments_fit() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stage = text[text.index("AS serve\n") : text.index("AS plumage\n")]
    [words] = re.findall(r"^ENTRYPOINT (.*)$", stage, re.M)
    assert json.loads(words)[2:] == ["python", "-m", "pipeline", "serve"]
    [words] = re.findall(r"^CMD (.*)$", stage, re.M)
    _, arguments = parse(["serve", *json.loads(words)])
    assert (arguments.positionals, arguments.host) == (["/export"], "0.0.0.0")
    assert text.rindex("FROM ") == text.index("FROM ${BASE} AS plumage"), "what is built without --target"


def test_the_server_imports_only_what_its_image_has() -> None:
    lines = (ROOT / "constraints-serve.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    code = (
        "import sys; from importlib.metadata import packages_distributions\n"
        "import pipeline.cli.main, pipeline.serving.serve\n"
        "packages = packages_distributions()\n"
        "print(*{one for name in sys.modules for one in packages.get(name, [])})"
    )
    done = tiny.launch([sys.executable, "-c", code], cwd=ROOT)
    imported = {canonicalize_name(name) for name in done.stdout.split()}
    optional = {name for name in imported if name.startswith("opentelemetry") or name in OPTIONAL}
    assert {"fastapi", "onnxruntime", "numpy"} <= imported
    assert not imported - optional - pinned - {"plumage", "setuptools"}


def test_constraints_pin_every_runtime_dependency_as_the_project_asks() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    section = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert section is not None
    wanted = [Requirement(text) for text in re.findall(r'"(.+?)"', section[1])]
    assert len(wanted) > 15
    for one in wanted:
        assert one.specifier.contains(pinned.get(canonicalize_name(one.name), "nothing")), (
            f"{one}; run scripts/constraints.py"
        )
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_both_images_have_the_same_version_of_what_they_share() -> None:
    both = [
        dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
        for name in ("constraints.txt", "constraints-serve.txt")
    ]
    shared = both[0].keys() & both[1].keys()
    assert {"numpy", "pydantic", "opencv-python-headless"} <= shared
    assert [name for name in sorted(shared) if both[0][name] != both[1][name]] == []


def test_what_the_image_sets_makes_make_use_its_packages() -> None:
    flags = re.search(r'MAKEFLAGS="(.*?)"', (ROOT / "Dockerfile").read_text())
    assert flags is not None
    environment = {**os.environ, "MAKEFLAGS": flags[1]}
    done = tiny.launch(
        ["make", "--no-print-directory", "--dry-run", "data", "train", "eval"], env=environment, cwd=ROOT
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["/opt/plumage/bin/python"] * 3


def test_the_image_holds_the_code_and_nothing_of_a_users() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    inside = [
        "pipeline/cli/main.py",
        "pipeline/report/page.css",
        "Makefile",
        "configs/demo.yaml",
        "constraints.txt",
        "constraints-serve.txt",
    ]
    outside = ["data/cub200/raw/x.jpg", "runs/a/log.jsonl", ".git/config", ".venv/bin/python", "weights.pth"]
    outside += ["pipeline/__pycache__/cli.pyc", "wandb/key"]
    assert not [path for path in inside if chroot_build.ignored(Path(path), patterns)]
    assert not [path for path in outside if not chroot_build.ignored(Path(path), patterns)]


def test_docker_run_mounts_and_tells_no_secret(tmp_path: Path) -> None:
    fake = tmp_path / "docker"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "WANDB_API_KEY": "secret", "DATA": str(tmp_path / "birds")}
    script = ROOT / "scripts/docker_run.sh"
    words = ["bash", str(script), "data", "train", "GPUS=2", "ARGS=a=1 b=2"]
    done = tiny.launch(words, env=environment, cwd=tmp_path)
    said = done.stdout.splitlines()
    assert said[-6:] == ["plumage", "make", "data", "train", "GPUS=2", "ARGS=a=1 b=2"]
    assert said[said.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert {f"{tmp_path / 'birds'}:/plumage/data", f"{tmp_path / 'runs'}:/plumage/runs"} <= set(said)
    assert (said[said.index("--env") + 1], "secret" in done.stdout) == ("WANDB_API_KEY", False)
    assert {"--gpus", "--shm-size"} <= set(said)
    environment |= {"DEVICES": "none", "SHM": "host"}
    said = tiny.launch(words, env=environment, cwd=tmp_path).stdout.splitlines()
    assert ("--gpus" in said, said[said.index("--ipc") + 1]) == (False, "host")
    assert tiny.launch(words[:2], env=environment, cwd=tmp_path).returncode == 2
