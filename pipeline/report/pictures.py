"""Pictures inside the page: small crops as the model gets them, with or without their heat map."""

from typing import Any

import numpy.typing as npt

from pipeline.config.data import DataConfig
from pipeline.data.pictures import Pixels, resized
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.explain.heat_map_files import heated
from pipeline.report.page_values import data_uri


class Pictures:
    """The pictures of a data set by image id, as WebP in data URIs of at most `px` pixels a side."""

    def __init__(self, config: DataConfig, data: Prepared, px: int) -> None:
        self._config, self._data, self._px = config, data, px
        self._crop = CentreCrop(config)
        self._row = {int(image): row for row, image in enumerate(data.samples["id"])}

    def plain(self, image: int, px: int | None = None) -> str:
        """The centre crop in the proportions of the original; `px`: the longest side, instead of the usual one."""
        return data_uri(self.pixels(image, px))

    def heated(self, image: int, grid: npt.NDArray[Any]) -> str:
        """The crop under its heat map [h, w], 0..1: dark and grey where nothing speaks for the predicted class."""
        return data_uri(heated(self.pixels(image), grid))

    def pixels(self, image: int, px: int | None = None) -> Pixels:
        """The crop as uint8 [H, W, 3] RGB."""
        px = px or self._px
        row = self._row[image]
        crop = self._crop(self._data.store[row], 0, row)
        width, height = px, px
        if self._config.resize == "squash":
            sample = self._data.samples.iloc[row]
            scale = px / max(sample["width"], sample["height"])
            width, height = (max(1, round(float(sample[side]) * scale)) for side in ("width", "height"))
        return resized(crop, width, height)
