"""What several tests of the page begin with."""

import pytest

from pipeline.common.errors import DataError
from pipeline.webpage import runtime_files


@pytest.fixture(scope="module")
def engine() -> runtime_files.Engine:
    try:
        return runtime_files.engine()
    except DataError as error:
        pytest.skip(str(error))
