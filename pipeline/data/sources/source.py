"""The list of all sources.

A new source is a class of `base.Source` in one file beside this one, and one entry in `SOURCES`; its name is allowed by
the list of `data.source` in `config/data.py`.
"""

from collections.abc import Callable

from pipeline.common.errors import DataError
from pipeline.config.data import OWN, DataConfig
from pipeline.data.sources import array_datasets, field_datasets
from pipeline.data.sources.base import Source
from pipeline.data.sources.class_folders import ClassFolders
from pipeline.data.sources.cub200 import Cub200
from pipeline.data.sources.drawn_birds.dataset import DrawnBirds
from pipeline.data.sources.hugging_face import HuggingFace
from pipeline.data.sources.nabirds import NABirds
from pipeline.data.sources.picture_list import PictureList
from pipeline.data.sources.stanford_cars import StanfordCars
from pipeline.data.sources.stanford_dogs import StanfordDogs

SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cub200": Cub200,
    "folder": ClassFolders,
    "csv": PictureList,
    "hugging_face": HuggingFace,
    "synthetic": DrawnBirds,
    **array_datasets.SOURCES,
    **field_datasets.SOURCES,
    "nabirds": NABirds,
    "stanford_dogs": StanfordDogs,
    "stanford_cars": StanfordCars,
}

WITHOUT_ARCHIVE = (*OWN, "synthetic", "digits")
"""sources that read nothing from data.archive"""


def source_of(config: DataConfig) -> Source:
    """The source that `data.source` names."""
    return SOURCES[config.source](config)


def check_archive(config: DataConfig) -> None:
    """Raise a `DataError` where an archive is given to a source that takes none."""
    if config.archive is not None and config.source in WITHOUT_ARCHIVE:
        raise DataError(
            f"data.archive={config.archive}: source {config.source} reads {config.path or 'no file'}, and no archive; "
            "leave data.archive out, or set data.source to the published set that it holds"
        )
