"""Pictures of files are seen as evaluation sees those of the store."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.answering.picture_outputs import Outputs, Unreadable, outputs_of
from pipeline.data import prepare
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.inference import load_model
from tests.helpers import tiny


@pytest.mark.parametrize(("batch_size", "tta", "batches"), [(3, "none", [3, 3, 1]), (3, "flip", [1] * 7)])
def test_crops_are_those_of_the_store_bit_for_bit_in_the_order_of_the_paths(
    trained: Path, tmp_path: Path, batch_size: int, tta: str, batches: list[int]
) -> None:
    config = tiny.config(trained, f"eval.batch_size={batch_size}", f"eval.tta={tta}")
    data, root, device = prepare.load(config), prepare.find_root(config.data), torch.device("cpu")
    assert root is not None
    rows = list(range(20, 14, -1))
    paths = [root / "images" / data.samples["path"][row] for row in rows]
    paths.insert(2, tmp_path / "missing.png")
    model, _ = load_model.load_model_without_data(
        config, load_model.checkpoint_path(config), Ranks.single(device)
    )
    found = list(outputs_of(config, model, paths, device))
    assert [len(batch) for batch in found] == batches
    outputs = [one for batch in found for one in batch]
    assert [one.path for one in outputs] == paths
    assert outputs.pop(2) == Unreadable(tmp_path / "missing.png", "missing")
    crop = CentreCrop(config.data)
    for row, one in zip(rows, outputs, strict=True):
        assert isinstance(one, Outputs)
        assert np.array_equal(one.crop, crop(data.store[row], 0, 0))
        assert one.logits.shape == (tiny.SPECIES,) and one.logits.dtype == np.float32
