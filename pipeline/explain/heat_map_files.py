"""Heat maps of a prediction's pictures, as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.data.pictures import Pixels
from pipeline.explain import grad_cam
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import memory_errors

HEAT = colormaps["inferno"]
STRENGTH = 0.75  # opacity of the heat where it is strongest
REMAINS = 0.55  # share of the picture's brightness where there is no heat


def heated(pixels: Pixels, grid: npt.NDArray[Any]) -> Pixels:
    """A picture [H, W, 3] under its heat map [h, w], 0..1: dark and grey where nothing speaks for the class."""
    height, width = pixels.shape[:2]
    heat = np.clip(grad_cam.enlarged(grid, width, height), 0, 1)[..., None]
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colour = HEAT(heat[..., 0])[..., :3] * 255
    share = STRENGTH * heat
    return np.asarray(np.clip(grey * REMAINS * (1 - share) + colour * share, 0, 255), np.uint8)


@dataclass(frozen=True)
class HeatMapFiles:
    """A new folder of pictures under the heat maps (Grad-CAM) of their most likely classes: NUMBER-NAME.png."""

    folder: Path

    def check(self) -> None:
        """Raise a `DataError` where the folder holds something: nothing is written among a user's files."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise DataError(f"--heatmap {self.folder}: exists and is not empty; name a new folder")

    def write(
        self, model: Classifier, pictures: Sequence[tuple[int, Path, Pixels, int]], device: torch.device
    ) -> None:
        """Write the heat maps of some pictures.

        Args:
            pictures: the number of each, its path, its crop uint8 [P, P, 3], and the label of its class.

        Raises:
            DataError: the model has no layer with height and width.
            ConfigError: memory does not suffice.
        """
        crops = np.stack([crop for _, _, crop, _ in pictures])
        layer = grad_cam.spatial_layer(model, crops.shape[1])
        if layer is None:
            raise DataError(
                f"--heatmap {self.folder}: the model has no layer with height and width (a vision transformer, say); "
                "leave the option out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        too_little = memory_errors(
            f"--heatmap: memory does not suffice for heat maps of {grad_cam.BATCH} images at once",
            "leave the option out, or set train.device=cpu",
        )
        with too_little, grad_cam.mapping(model, layer) as maps_of:
            for start in range(0, len(pictures), grad_cam.BATCH):
                part = slice(start, start + grad_cam.BATCH)
                images = torch.from_numpy(crops[part]).to(device).permute(0, 3, 1, 2)
                maps = maps_of(images, np.array([label for _, _, _, label in pictures[part]], np.int64))
                for (number, path, crop, _), grid in zip(pictures[part], maps, strict=True):
                    self._write(self.folder / f"{number:06}-{path.stem[:50]}.png", heated(crop, grid))

    def _write(self, path: Path, pixels: Pixels) -> None:
        content = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
        with files.replacing(path) as part:
            part.write_bytes(content.tobytes())
