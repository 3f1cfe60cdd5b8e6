"""What several tests of the server begin with."""

from pathlib import Path

import pytest

from tests.helpers.serving import small_export


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a small model; tests that change it copy it."""
    return small_export(tmp_path_factory.mktemp("export") / "small")
