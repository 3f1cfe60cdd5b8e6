"""A finished run of a study, opened again: its best network, and its validation images."""

import torch
from torch import Tensor

from pipeline.data import prepare
from pipeline.data.loader import Images
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.experiments.studies.plan import Member
from pipeline.inference import load_model
from pipeline.models.classifier import Classifier


def images(member: Member) -> tuple[Tensor, Tensor]:
    """The validation images of a run, uint8 [n, 3, H, W], and their labels, int64 [n]."""
    data = prepare.load(member.config)
    labels = data.samples["label"].to_numpy("int64", copy=True)
    view = CentreCrop(member.config.data)
    batch = Images(data.store, labels, view).__getitems__([(0, row) for row in data.rows("val")])
    return batch.image.permute(0, 3, 1, 2).contiguous(), batch.label


def network(member: Member) -> Classifier:
    """The run's best network on the CPU, in evaluation mode."""
    samples = prepare.load(member.config).samples
    path = load_model.checkpoint_path(member.config)
    return load_model.load_model(member.config, samples, path, Ranks.single(torch.device("cpu"))).model
