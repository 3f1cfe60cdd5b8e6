"""What each configuration key changes: the one table behind resume, compare, eval, ranks, runs and sweeps.

To add a key, enter it here; a test fails until it is.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class KeyEffect:
    """What a key changes, and who may therefore have another value of it."""

    effect: Literal["nothing", "speed", "training", "identity"]
    """
    nothing: no training number; the key names, logs or saves, or is an option of another verb.
    speed: how fast and on which hardware it runs; the results are the same up to rounding.
    training: what is learned from the same images by the same network.
    identity: the network, or the images and their splits; a checkpoint of one does not fit the other.
    """
    on_resume: Literal["free", "forced", "refused"]
    """another value than the checkpoint's: allowed; allowed with train.resume_force; never"""
    name_only: bool = False
    """what a run is called and where its numbers go; `runs` does not list it as a difference"""
    per_machine: bool = False
    """where a machine keeps its files and how many processes it starts; ranks may disagree"""
    per_trial: bool = False
    """set by a sweep for each of its trials"""

    @property
    def changes_numbers(self) -> bool:
        """Whether another value gives another model, and thus other numbers."""
        return self.effect in ("training", "identity")


NOTHING = KeyEffect("nothing", "free")
NAME = KeyEffect("nothing", "free", name_only=True)
SPEED = KeyEffect("speed", "free")
ROUNDING = KeyEffect("speed", "refused")  # resumed with another value, a run would not be bit-identical
TRAINING = KeyEffect("training", "refused")
FORCIBLE = KeyEffect("training", "forced")  # the checkpoint's state still fits
STARTING = KeyEffect("training", "free")  # where a training starts or stops, not what a step does
IDENTITY = KeyEffect("identity", "refused")

KEY_EFFECTS = {
    "seed": TRAINING,
    "run.name": replace(NAME, per_trial=True),
    "run.root": replace(NAME, per_machine=True, per_trial=True),
    "data.source": IDENTITY,
    "data.path": replace(NOTHING, per_machine=True),
    "data.root": replace(NOTHING, per_machine=True),
    "data.archive": replace(NOTHING, per_machine=True),
    "data.archive_md5": replace(NOTHING, per_machine=True),
    "data.on_bad": IDENTITY,
    "data.corrections": replace(IDENTITY, on_resume="free", per_machine=True),  # the table's digest tells
    "data.taxonomy": replace(NOTHING, per_machine=True),
    "data.synthetic.species": IDENTITY,
    "data.synthetic.images_per_species": IDENTITY,
    "data.synthetic.train_per_species": IDENTITY,
    "data.synthetic.long_side_px": IDENTITY,
    "data.synthetic.seed": IDENTITY,
    "data.synthetic.flipped_labels": IDENTITY,
    "data.synthetic.duplicates": IDENTITY,
    "data.test_fraction": IDENTITY,
    "data.val_fraction": IDENTITY,
    "data.folds": IDENTITY,
    "data.fold": IDENTITY,
    "data.split_seed": IDENTITY,
    "data.train_images": IDENTITY,
    "data.val_images": IDENTITY,
    "data.test_images": IDENTITY,
    "data.resize": TRAINING,
    "data.resize_px": TRAINING,
    "data.store": TRAINING,
    "data.background": TRAINING,
    "data.image_px": TRAINING,
    "data.pad_px": TRAINING,
    "data.crop": FORCIBLE,
    "data.crop_area_min": FORCIBLE,
    "data.flip": FORCIBLE,
    "data.color_jitter": FORCIBLE,
    "data.auto_augment": FORCIBLE,
    "data.random_erasing": FORCIBLE,
    "data.sampler": TRAINING,
    "data.progressive": TRAINING,
    "data.workers": replace(SPEED, per_machine=True),
    "model.name": IDENTITY,
    "model.pretrained": STARTING,
    "model.weights": replace(STARTING, per_machine=True),
    "model.options": IDENTITY,
    "model.dropout": TRAINING,
    "model.stochastic_depth": TRAINING,
    "model.pool": IDENTITY,
    "model.mid_level_head": IDENTITY,
    "model.mean": IDENTITY,
    "model.std": IDENTITY,
    "model.freeze_batchnorm": FORCIBLE,
    "optim.name": TRAINING,
    "optim.lr": FORCIBLE,
    "optim.momentum": FORCIBLE,
    "optim.nesterov": FORCIBLE,
    "optim.weight_decay": FORCIBLE,
    "optim.options": TRAINING,
    "optim.phases": TRAINING,
    "optim.batch_size": TRAINING,
    "optim.effective_batch_size": TRAINING,
    "optim.head_lr_multiplier": TRAINING,
    "optim.layer_decay": TRAINING,
    "optim.frozen_stages": TRAINING,
    "optim.unfreeze_epoch": TRAINING,
    "optim.clip_norm": FORCIBLE,
    "schedule": FORCIBLE,
    "train.epochs": FORCIBLE,
    "train.subset": TRAINING,
    "train.refit": replace(IDENTITY, on_resume="free", per_machine=True),  # the table's digest tells
    "train.start_from": STARTING,
    "train.max_steps": STARTING,
    "train.label_smoothing": FORCIBLE,
    "train.mix": FORCIBLE,
    "train.ema_decay": TRAINING,
    "train.ema_warmup": TRAINING,
    "train.eval_every_steps": TRAINING,
    "train.early_stop_epochs": FORCIBLE,
    "train.checkpoint_every_steps": NOTHING,
    "train.checkpoint_every_minutes": NOTHING,
    "train.keep_checkpoints": NOTHING,
    "train.resume": replace(NOTHING, per_trial=True),
    "train.resume_force": replace(STARTING, per_trial=True),
    "train.device": SPEED,
    "train.precision": TRAINING,
    "train.tf32": ROUNDING,
    "train.channels_last": ROUNDING,
    "train.compile": ROUNDING,
    "train.cuda_graphs": ROUNDING,
    "train.deterministic": ROUNDING,
    "distributed.timeout_s": NOTHING,
    "distributed.data_timeout_minutes": NOTHING,
    "distributed.sync_batchnorm": FORCIBLE,
    "distributed.bucket_mb": SPEED,
    "distributed.static_graph": SPEED,
    "distributed.compress": FORCIBLE,
    "distributed.shard": SPEED,
    "lr_find.lowest": NOTHING,
    "lr_find.highest": NOTHING,
    "lr_find.steps": NOTHING,
    "summary.depth": NOTHING,
    "summary.classes": NOTHING,
    "eval.split": NOTHING,
    "eval.checkpoint": NOTHING,
    "eval.batch_size": SPEED,
    "eval.tta": NOTHING,
    "eval.image_px": NOTHING,
    "eval.labels": NOTHING,
    "eval.peek_gap": NOTHING,
    "eval.protocol": NOTHING,
    "eval.while_training": NOTHING,
    "report.write": NOTHING,
    "report.gallery": NOTHING,
    "report.pairs": NOTHING,
    "report.explained": NOTHING,
    "report.sanity_checks": NOTHING,
    "report.neighbours": NOTHING,
    "report.picture_px": NOTHING,
    "tracking.log_every_steps": NAME,
    "tracking.gradients_every_steps": NAME,
    "tracking.tensorboard": NAME,
    "tracking.csv": NAME,
    "tracking.wandb": NAME,
    "tracking.project": NAME,
    "tracking.entity": NAME,
    "tracking.name": NAME,
    "tracking.group": NAME,
    "tracking.tags": NAME,
    "tracking.notes": NAME,
    "tracking.log_checkpoint": NAME,
    "tracking.upload_wait_s": NAME,
}

NAMING_SECTIONS = dict.fromkeys(
    key.partition(".")[0] for key, key_effect in KEY_EFFECTS.items() if key_effect.name_only
)
"""run and tracking, as keys; the values are None"""


def effect_of(key: str) -> KeyEffect:
    """The effect of a dotted key, or of the table's key that it is below, as `schedule.gamma` is.

    A key that is not in the table is from another version: where no key of its section changes a training (`run`,
    `eval`, `tracking`, ...), it has the effect of the section's first key; elsewhere it counts as `TRAINING`.
    """
    section, path = key.partition(".")[0], key
    while path and path not in KEY_EFFECTS:
        path = path.rpartition(".")[0]
    if path:
        return KEY_EFFECTS[path]
    siblings = [effect for known, effect in KEY_EFFECTS.items() if known.partition(".")[0] == section]
    harmless = all(
        sibling.effect in ("nothing", "speed") and sibling.on_resume == "free" for sibling in siblings
    )
    return siblings[0] if siblings and harmless else TRAINING
