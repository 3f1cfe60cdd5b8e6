"""What the contestants share: photographs in class folders, ImageNet weights as timm's hub has them, environments."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import timm
from measuring import Options

from pipeline.common import files
from pipeline.data import prepare
from pipeline.models import packaged_weights, pretrained

MODEL, TAG = "tf_efficientnet_lite0", "in1k"
DRIVERS = Path(__file__).parent / "contestants"
DATA = ("data.resize=short_side", "data.resize_px=256", "data.image_px=224")
FEW = "data.synthetic={species: 3, images_per_species: 10, train_per_species: 7, long_side_px: 256}"


def photographs(options: Options) -> Path:
    """A folder with train, val and test, and in each a folder a class: the splits of seed 0, as links.

    The folders' names sort as the labels do.
    """
    config = options.config(*DATA, *([FEW] if options.tiny else []))
    table, images = prepare.prepare(config).samples, prepare.fetch(config.data) / "images"
    rows = table[["path", "split", "label", "class_name"]].astype(str)
    digest = hashlib.sha256(rows.to_csv().encode()).hexdigest()[:8]
    folder = options.folder / "contest" / f"photographs-{digest}"
    if not folder.is_dir():
        with files.replacing_folder(folder) as part:
            for path, split, label, name in rows.itertuples(index=False):
                target = part / split / f"{int(label):04d} {name.replace('/', ' ')}" / path.replace("/", " ")
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(images / path, target)
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def hub(options: Options) -> Path:
    """A cache of the hub of Hugging Face that holds the command line's weights under the name of timm's own.

    So every contestant loads the same tensors by the name that its documentation has, without a network.
    """
    weights = next(
        (word.partition("=")[2] for word in options.overrides if word.startswith("model.weights=")), "package"
    )
    cache = options.folder / "contest" / f"hub-{hashlib.sha256(weights.encode()).hexdigest()[:8]}"
    if not cache.is_dir():
        network = timm.create_model(MODEL)
        if weights == "package":
            packaged_weights.load_packaged(network, MODEL)
        else:
            pretrained.load_pretrained(network, Path(weights))
        with files.replacing_folder(cache) as part:
            entry = part / f"models--timm--{MODEL}.{TAG}"
            (entry / "refs").mkdir(parents=True)
            (entry / "refs" / "main").write_text("0" * 40)
            snapshot = entry / "snapshots" / ("0" * 40)
            timm.models.save_for_hf(network, snapshot, safe_serialization=True)
            config = json.loads((snapshot / "config.json").read_text())
            del config["model_args"]  # that of the hub has none
            (snapshot / "config.json").write_text(json.dumps(config))
    return cache


def python_of(environment: str, options: Options) -> Path:
    """The interpreter of an environment that sees this one's packages and, before them, those of its own.

    It is made where it is not there yet, from contestants/ENVIRONMENT.txt; a PyTorch of its own it does not get: what
    would ask for another one is listed in ENVIRONMENT_alone.txt, and installed without what it asks for.

    Raises:
        subprocess.CalledProcessError: pip could not install it; `stderr` says why.
    """
    if not environment:
        return Path(sys.executable)
    folder = options.folder / "env" / environment
    python, done = folder / "bin" / "python", folder / "installed.txt"
    lists = [
        path for name in (environment, f"{environment}_alone") if (path := DRIVERS / f"{name}.txt").is_file()
    ]
    wanted = "".join(path.read_text() for path in lists)
    if done.is_file() and done.read_text() == wanted:
        return python
    venv.create(folder, clear=True, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "shared.pth").write_text(
        "".join(f"{path}\n" for path in sys.path if path.endswith("site-packages"))
    )
    keep = folder / "keep.txt"
    keep.write_text("".join(f"{name}=={version(name)}\n" for name in ("torch", "torchvision")))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    for path in lists:
        alone = ["--no-deps"] if path.stem.endswith("_alone") else ["--constraint", keep]
        subprocess.run([*pip, *alone, "--requirement", path], check=True, capture_output=True, text=True)
    done.write_text(wanted)
    return python
