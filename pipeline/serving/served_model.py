"""The export that a server answers from: it gives golden's pixels and logits on this machine, or is not served."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.common import console, files
from pipeline.common.errors import DataError, ExportError
from pipeline.data.pictures import Pixels
from pipeline.export.standalone import Exported, crop_of
from pipeline.runs.directory import RunDirectory
from pipeline.webpage.page import FORMS, Form, served_page

MODEL, GOLDEN = "model.onnx", "golden"
FACTS = {"classes", "preprocessing", "temperature", "unknown", "origin", "weights"}
Outputs = dict[str, Any]
"""of one picture, by name: logits [C], probabilities [C], perhaps known_score"""


def find_export(path: Path) -> Path:
    """The export folder that a path means: itself, or that of a run.

    Raises:
        DataError: there is none.
    """
    if (path / MODEL).is_file():
        return path
    run = RunDirectory(path)
    if not run.config_file.is_file():
        raise DataError(
            f"{path}: neither a run directory nor an export; name one such as runs/NAME, or runs/NAME/export"
        )
    if not (run.export / MODEL).is_file():
        raise DataError(f"{path}: is not exported yet; run `plumage export {path}` first")
    return run.export


class ServedModel(Exported):
    """An exported model that has proved itself here. Any thread may ask it."""

    def __init__(self, folder: Path, most: int, form: Form = "fp32") -> None:
        """Load and verify.

        A call computes in one thread: so the bits of a picture do not depend on what else is asked.

        Args:
            folder: of the export.
            most: pictures of a batch.
            form: of the model.

        Raises:
            DataError, ExportError: it cannot be read, or does not answer as the trained model did.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = _file_of(folder, form)
        try:
            super().__init__(folder, path.name)
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a type for each of its faults
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ExportError(f"{path}: cannot be loaded ({line}); export the run again") from error
        if missing := FACTS - self.facts.keys():
            raise DataError(
                f"{path}: says nothing about its {', '.join(sorted(missing))}; serve what `plumage export` has written"
            )
        for name in (f"{GOLDEN}/{self.golden_file}", "export.json"):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: has no {name}, so nothing is proved; export the run again")
        self.sha256 = files.digest_of_file(path)
        self.proof = _proof(folder)
        self.page = served_page(folder)
        self._verify(folder)
        self.batch = self._largest_batch(folder, most)

    def batch_outputs(self, crops: Sequence[Pixels]) -> list[Outputs]:
        """The outputs of pictures, each uint8 [3, P, P], RGB: to the bit those of each alone."""
        names = [output.name for output in self.session.get_outputs()]
        found = self.session.run(None, {"images": np.stack(crops)})
        return [dict(zip(names, one, strict=True)) for one in zip(*found, strict=True)]

    def _verify(self, folder: Path) -> None:
        """Compare with golden/."""
        if differences := self.differences(folder / GOLDEN):
            raise ExportError(
                f"{folder}: does not answer here as the trained model did: {'; '.join(differences)}; it is not served"
            )

    def _largest_batch(self, folder: Path, most: int) -> int:
        """The largest number of pictures up to `most` of which every batch up to it gives the bits of one."""
        golden = json.loads((folder / GOLDEN / self.golden_file).read_text(encoding="utf-8"))
        paths = [folder / GOLDEN / picture["file"] for picture in golden["pictures"]]
        crops = [crop_of(path, self.facts["preprocessing"]).transpose(2, 0, 1) for path in paths]
        alone = [self.batch_outputs([crop])[0] for crop in crops]
        for size in range(2, most + 1):
            rows = [n % len(crops) for n in range(size)]
            for row, found in zip(rows, self.batch_outputs([crops[row] for row in rows]), strict=True):
                if any(not np.array_equal(found[name], alone[row][name]) for name in found):
                    console.say(
                        f"serve  at most {size - 1} pictures a batch: {size} at once are rounded differently"
                    )
                    return size - 1
        return most


def _file_of(folder: Path, form: Form) -> Path:
    path = folder / FORMS[form][0]
    if not path.is_file():
        present = ", ".join(one for one, (name, _) in FORMS.items() if (folder / name).is_file())
        raise DataError(
            f"{path}: missing; export the run with --{form}, which writes it if it passes, or serve {present}"
        )
    return path


def _proof(folder: Path) -> dict[str, Any]:
    """What export.json says was compared; empty without it."""
    path = folder / "export.json"
    if not path.is_file():
        return {}
    return {
        name: value for name, value in files.read_json(path, dict[str, Any]).items() if name != "metadata"
    }


def warn_of_another_checkpoint(path: Path, model: ServedModel) -> None:
    """Warn where none of a run's checkpoints is the one that was exported."""
    run, exported = RunDirectory(path), model.facts["origin"].get("checkpoint_sha256")
    present = [one for one in (run.checkpoint("best"), run.checkpoint("last")) if one.is_file()]
    if present and exported not in map(files.digest_of_file, present):
        console.warn(
            f"{path}: was trained further since it was exported; run `plumage export {path}` to update it"
        )
