"""What each configuration key changes."""

# What may differ between a checkpoint and the run that goes on from it: it changes no number.
FREE_KEYS = (
    "run.",
    "eval.",
    "lr_find.",
    "report.",
    "summary.",
    "tracking.",
    "distributed.bucket_mb",
    "distributed.data_timeout_minutes",
    "distributed.shard",
    "distributed.static_graph",
    "distributed.timeout_s",
    "data.root",
    "data.archive",
    "data.workers",
    "model.pretrained",
    "model.weights",
    "train.device",
    "train.max_steps",
    "train.resume",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)


# What train.resume_force lets differ besides: the state still fits, and what comes is another training.
FORCED_KEYS = (
    "data.color_jitter",
    "data.crop",
    "data.flip",
    "data.auto_augment",
    "data.random_erasing",
    "distributed.compress",
    "distributed.sync_batchnorm",
    "model.freeze_batchnorm",
    "optim.clip_norm",
    "optim.lr",
    "optim.momentum",
    "optim.nesterov",
    "optim.weight_decay",
    "schedule.",
    "train.early_stop_epochs",
    "train.epochs",
    "train.label_smoothing",
    "train.mix",
)


# Keys of a configuration in which runs of one group may differ: none of them changes what is learned,
# but for the seed.
FREE = (
    "seed",
    "run",
    "eval",
    "report",
    "tracking",
    "data.root",
    "data.archive",
    "data.workers",
    "train.device",
)


OWN_KEYS = ("data.root", "data.archive", "data.workers", "model.weights", "run.root")
"""what a machine may have otherwise: where its files are, and how many processes it starts"""


OF_A_NAME = ("run.", "tracking.")  # what a run is called, and where its numbers go, makes no other training
