"""What keeps torch from a GPU of this machine: how it was built, the driver, or a GPU that it has no kernels for."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.common.hardware import DEVICES

if TYPE_CHECKING:
    import torch

DRIVER = Path("/proc/driver/nvidia/version")
SMI, SMI_WAIT_S = "nvidia-smi", 20.0
# Drivers by the major version of CUDA: NVIDIA, "CUDA Compatibility", table of minor version compatibility.
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
OR_CPU = "or set train.device=cpu"


class Obstacle(NamedTuple):
    """What is in the way, and what to do."""

    what: str
    next: str


def driver() -> str | None:
    """The version of NVIDIA's driver, `580.65.06`; None without one."""
    if DRIVER.is_file():
        text = DRIVER.read_text(errors="replace")
    elif shutil.which(SMI):  # WSL has no such file
        query = [SMI, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(
                query, capture_output=True, text=True, check=True, timeout=SMI_WAIT_S
            ).stdout
        except (OSError, subprocess.SubprocessError):  # the program alone, in an image
            return None
    else:
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found.group() if found else "unknown"


def why_no_gpu() -> Obstacle | None:
    """Why torch sees no GPU on a machine that has NVIDIA's driver; None where it has none, or GPUs are hidden."""
    import torch

    visible = os.environ.get(DEVICES)
    if torch.cuda.is_available() or (visible is not None and visible.strip() in ("", "-1")):
        return None
    version = driver()
    if version is None:
        return None
    built = torch.version.cuda
    if built is None:
        return Obstacle(
            f"this machine has NVIDIA's driver {version}, but torch {torch.__version__} is built without CUDA",
            f"install a PyTorch build with CUDA, {OR_CPU}",
        )
    least = LEAST_DRIVER.get(int(built.partition(".")[0]))
    if least is not None and version != "unknown" and int(version.partition(".")[0]) < least:
        return Obstacle(
            f"NVIDIA's driver is {version}, but torch {torch.__version__} is built for CUDA {built}, which needs "
            f"{least} or newer",
            f"update the driver, or install a PyTorch build for an older CUDA, {OR_CPU}",
        )
    return Obstacle(
        f"this machine has NVIDIA's driver {version}, but torch {torch.__version__} (CUDA {built}) sees no GPU",
        f"check that nvidia-smi lists one, and that this job or container was given it ({DEVICES}="
        f"{visible or ''}), {OR_CPU}",
    )


def why_unusable(device: "torch.device") -> Obstacle | None:
    """Why torch cannot compute on a GPU that it sees: no kernels for it, or another process; None: it can."""
    import torch

    capability, architectures = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if torch.version.cuda is None or any(_runs(name, capability) for name in architectures):
        return _why_it_fails(device)
    return Obstacle(
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, but torch "
        f"{torch.__version__} (CUDA {torch.version.cuda}) has kernels only for {', '.join(architectures)}",
        f"install a PyTorch build for this generation (CUDA 12.6 for V100 and older), {OR_CPU}",
    )


def _why_it_fails(device: "torch.device") -> Obstacle | None:
    """Compute one number: a GPU may be full, or reserved by another process."""
    import torch

    try:
        torch.ones(1, device=device)
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        return Obstacle(
            f"{device} does not compute ({first_line})", f"check with nvidia-smi what else uses it, {OR_CPU}"
        )
    return None


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether kernels run on a GPU: `sm_86` from 8.6 on within 8.x, `compute_86` (compiled there) from 8.6 on."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", architecture)
    if found is None:
        return False
    built_for = int(found[2]), int(found[3])
    return capability >= built_for and (found[1] == "compute" or capability[0] == built_for[0])
