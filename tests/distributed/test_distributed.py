"""Two to four gloo ranks on the CPU against one process: the same training, the same numbers, no rank left hanging."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipeline.cli import main
from pipeline.common.errors import RankLost
from pipeline.config.training import TrainConfig
from pipeline.data.loader import Batch
from pipeline.distributed import process_group
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.runs.checkpoints import read
from pipeline.training import resume, step, trainer
from tests.helpers import ranks, tiny

# Twenty steps and what goes across ranks in them: batch norm over all ranks, clipping, averaging, frozen stages
# that thaw (which wraps the model anew), and a switch of optimizers.
TWENTY_STEPS = [
    *("train.epochs=4", "tracking.log_every_steps=1", "optim.lr=1e-3", "distributed.sync_batchnorm=true"),
    *("optim.clip_norm=1", "train.ema_decay=0.9", "optim.frozen_stages=2", "optim.unfreeze_epoch=1"),
    "optim.phases=[{name: adamw, until: 1}, {name: sgd, carry_momentum: true}]",
]


def logs_agree(one: Path, other: Path, rel: float) -> int:
    """Compare two runs' logs; return how many losses of steps were compared."""
    ours, theirs = (tiny.records(run / "log.jsonl") for run in (one, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in {"loss", "train_loss", "val_loss", "lr", "train_top1", "val_top1"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=rel), (name, a["step"])
        if "grad_norm" in a:
            # a rounding flips a ReLU here and there
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=200 * rel)
    return sum("loss" in line for line in ours)


@pytest.fixture(scope="module")
def alone(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of twenty steps on one rank."""
    tmp = tmp_path_factory.mktemp("alone")
    assert ranks.run(ranks.run_verb, 1, "train", tmp, *TWENTY_STEPS)[0].value == 0
    return tmp / "runs/tiny"


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_train_as_one_does_to_rounding(alone: Path, tmp_path: Path, world: int) -> None:
    ended = ranks.run(ranks.run_verb, world, "train", tmp_path, *TWENTY_STEPS)
    assert [rank.value for rank in ended] == [0] * world, ended[0].said
    assert logs_agree(tmp_path / "runs/tiny", alone, 1e-5) == 20


def test_accumulation_makes_up_the_batch_on_any_number_of_ranks(birds: Path, tmp_path: Path) -> None:
    # Batch norm looks across what is computed at once, so it is kept out of this.
    more = ["model.freeze_batchnorm=true", "optim.lr=1e-3", "tracking.log_every_steps=1", "train.epochs=2"]
    more += ["optim.batch_size=4", "optim.effective_batch_size=7"]
    for world in (1, 3):
        ended = ranks.run(ranks.run_verb, world, "train", tmp_path, *more, f"run.name=on{world}")
        assert [rank.value for rank in ended] == [0] * world, ended[0].said
    assert logs_agree(tmp_path / "runs/on3", tmp_path / "runs/on1", 1e-5) == 12


def micro_batches(tmp: Path, *more: str) -> list[tuple[int, list[int]]]:
    """On each rank, of a training: the images of each step over all ranks, and of this rank's passes in it."""
    steps: list[tuple[int, list[int]]] = []
    backward, train_step = step._backward, trainer.train_step  # nothing public says what a pass computes

    def counted(state: Any, ddp_model: Any, batch: Batch, *args: Any) -> Any:
        steps[-1][1].append(len(batch.label))
        return backward(state, ddp_model, batch, *args)

    def begun(state: Any, ddp_model: Any, batch: Batch, images: int, *args: Any) -> Any:
        steps.append((images, []))
        return train_step(state, ddp_model, batch, images, *args)

    step._backward, trainer.train_step = counted, begun
    assert ranks.run_verb("train", tmp, "train.epochs=1", *more) == 0
    return steps


def test_a_number_of_ranks_that_does_not_divide_the_batch_takes_it_in_one_pass(
    birds: Path, tmp_path: Path
) -> None:
    ended = ranks.run(micro_batches, 3, tmp_path, "distributed.sync_batchnorm=true")
    assert all(rank.value for rank in ended), ended[0].said
    assert "8 images a step = 3 ranks x 3 images" in ended[0].said
    for steps in zip(*(rank.value for rank in ended), strict=True):
        assert [len(passes) for _, passes in steps] == [1, 1, 1]
        assert sum(images for _, passes in steps for images in passes) == steps[0][0]


def test_lr_find_on_two_ranks_with_frozen_stages_finds_what_one_does(birds: Path, tmp_path: Path) -> None:
    more = ["optim.frozen_stages=2", "distributed.sync_batchnorm=true"]
    more += ["lr_find.steps=20", "lr_find.lowest=1e-3", "lr_find.highest=0.3"]
    tables = []
    for world in (1, 2):
        ended = ranks.run(ranks.run_verb, world, "lr-find", tmp_path, *more, f"run.name=on{world}")
        assert [rank.value for rank in ended] == [0] * world, ended[0].said
        tables.append(pd.read_csv(next((tmp_path / f"runs/on{world}").rglob("*.csv"))))
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_a_static_graph_accumulates_as_any_other_does(birds: Path, tmp_path: Path) -> None:
    more = [*TWENTY_STEPS, "optim.batch_size=4", "optim.effective_batch_size=8"]
    for name, static in (("static", "true"), ("usual", "false")):
        options = f"distributed={{sync_batchnorm: true, static_graph: {static}}}"
        ended = ranks.run(ranks.run_verb, 2, "train", tmp_path, *more, options, f"run.name={name}")
        assert [rank.value for rank in ended] == [0, 0], ended[0].said
    assert logs_agree(tmp_path / "runs/static", tmp_path / "runs/usual", 1e-5) == 20


@pytest.mark.parametrize("options", ["static_graph: true, bucket_mb: 0.01", "shard: full"])
def test_how_gradients_are_exchanged_changes_no_number(alone: Path, tmp_path: Path, options: str) -> None:
    more = f"distributed={{sync_batchnorm: true, {options}}}"
    ended = ranks.run(ranks.run_verb, 2, "train", tmp_path, *TWENTY_STEPS, more)
    assert [rank.value for rank in ended] == [0, 0], ended[0].said
    assert logs_agree(tmp_path / "runs/tiny", alone, 1e-5) == 20


def test_compressed_gradients_are_those_of_bfloat16(alone: Path, tmp_path: Path) -> None:
    ended = ranks.run(ranks.run_verb, 2, "train", tmp_path, *TWENTY_STEPS, "distributed.compress=bf16")
    assert [rank.value for rank in ended] == [0, 0], ended[0].said
    assert logs_agree(tmp_path / "runs/tiny", alone, 2e-2) == 20
    with pytest.raises(AssertionError):
        logs_agree(tmp_path / "runs/tiny", alone, 1e-6)


def statistics(tmp: Path) -> list[list[float]]:
    """On each rank: the running statistics after a training."""
    kept: list[Any] = []
    before = trainer.train_step

    def learn(state: Any, *args: Any) -> Any:
        kept[:] = [state]
        return before(state, *args)

    trainer.train_step = learn
    assert ranks.run_verb("train", tmp, "train.epochs=1", "train.ema_decay=0.5") == 0
    models = kept[0].model, kept[0].ema.module
    return [
        value.tolist() for model in models for name, value in model.state_dict().items() if "running" in name
    ]


def test_running_statistics_are_the_mean_over_ranks_on_all_of_them(birds: Path, tmp_path: Path) -> None:
    one, other = (rank.value for rank in ranks.run(statistics, 2, tmp_path))
    assert one == other
    content = read(tmp_path / "runs/tiny/checkpoints/last.pt")
    saved = [
        value.tolist()
        for part in ("model", "ema")
        for name, value in content[part].items()
        if "running" in name
    ]
    assert one == saved


@pytest.mark.parametrize("world", [2, 4])
def test_evaluation_gives_the_same_bits_on_any_number_of_ranks(
    trained: Path, tmp_path: Path, world: int
) -> None:
    found = {}
    for on in (1, world):
        shutil.copytree(trained / "runs", tmp_path / f"{on}/runs")
        done = ranks.run(ranks.run_verb, on, "eval", tmp_path / f"{on}", "eval.batch_size=4")
        assert [rank.value for rank in done] == [0] * on, done[0].said
        folder = tmp_path / f"{on}/runs/tiny/eval/test"
        numbers = json.loads((folder / "metrics.json").read_text())
        assert numbers.pop("n") == 18
        places = ("run", "checkpoint")
        found[on] = {name: value for name, value in numbers.items() if name not in places}
        found[f"table {on}"] = (folder / "predictions.csv").read_bytes()
    assert found[1] == found[world]
    assert found["table 1"] == found[f"table {world}"]


# Going on with another number of ranks


def learn_until(tmp: Path, stop_after: int | None, *more: str) -> tuple[int, list[int]]:
    """On each rank: train until a signal comes to the last rank alone; exit code, and the rows learned from."""
    rows: list[int] = []
    before = trainer.train_step

    def learn(state: Any, parallel: Any, batch: Batch, *args: Any) -> Any:
        rows.extend(batch.row.tolist())
        done = before(state, parallel, batch, *args)
        if state.step == stop_after and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    trainer.train_step = learn
    return ranks.run_verb("train", tmp, *more), rows


@pytest.mark.parametrize("more", [[], ["distributed.shard=full"]])
def test_an_epoch_goes_on_with_other_numbers_of_ranks(birds: Path, tmp_path: Path, more: list[str]) -> None:
    seen: list[int] = []
    more = [*more, "train.epochs=1", "distributed.sync_batchnorm=true"]  # for a rank may have a single image
    for world, stop_after, code in [(2, 2, 75), (3, 3, 75), (1, None, 0)]:
        ended = ranks.run(learn_until, world, tmp_path, stop_after, *more)
        assert [rank.value[0] for rank in ended] == [code] * world, ended[0].said
        seen += [row for rank in ended for row in rank.value[1]]
    samples = pd.read_csv(tiny.samples_file())
    assert sorted(seen) == samples.index[samples["split"] == "train"].tolist()


def own_folder(tmp: Path, *more: str) -> int:
    """On each rank: train with a folder of runs of its own, as on machines that share no disk."""
    return ranks.run_verb("train", tmp / os.environ["RANK"], *more)


def test_a_checkpoint_that_only_the_first_machine_has_is_everyones(birds: Path, tmp_path: Path) -> None:
    more = ["train.epochs=2", "optim.phases=[{name: adamw}]", "train.ema_decay=0.9"]
    assert [rank.value for rank in ranks.run(ranks.run_verb, 2, "train", tmp_path / "whole", *more)] == [0, 0]
    first = [*more, "train.max_steps=3"]
    assert [rank.value for rank in ranks.run(own_folder, 2, tmp_path, *first)] == [0, 0]
    assert not (tmp_path / "1/runs/tiny/checkpoints").exists()
    second = ranks.run(own_folder, 2, tmp_path, *more)
    assert [rank.value for rank in second] == [0, 0], second[0].said
    last = "runs/tiny/checkpoints/last.pt"
    assert tiny.weights(tmp_path / "0" / last).keys() == tiny.weights(tmp_path / "whole" / last).keys()
    assert read(tmp_path / "0" / last)["step"] == 10


def test_a_job_that_a_launcher_starts_again_goes_on_whatever_it_was_told_first(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(trained, "train.resume=never")
    assert resume.requested(config) == "never"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resume.requested(config) == "auto"
    assert resume.requested(tiny.config(trained, "train.resume=never", "run.name=new")) == "never"


def test_a_run_in_shards_leaves_a_checkpoint_like_any_other(birds: Path, tmp_path: Path) -> None:
    more = ["optim.phases=[{name: adamw}]", "train.ema_decay=0.9", "train.epochs=1", "optim.lr=1e-3"]
    more += ["model.name=test_vit", "model.options={img_size: 32}"]
    for name, world, shard in [("shards", 2, "full"), ("whole", 1, "none")]:
        ended = ranks.run(
            ranks.run_verb, world, "train", tmp_path, *more, f"distributed.shard={shard}", f"run.name={name}"
        )
        assert [rank.value for rank in ended] == [0] * world, ended[0].said
    shards, whole = (read(tmp_path / f"runs/{name}/checkpoints/last.pt") for name in ("shards", "whole"))
    for part in ("model", "ema"):
        assert shards[part].keys() == whole[part].keys()
        for name, tensor in whole[part].items():
            torch.testing.assert_close(shards[part][name], tensor, rtol=1e-3, atol=1e-4)
    assert shards["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
    for number, state in whole["optimizer"]["state"].items():
        assert shards["optimizer"]["state"][number]["exp_avg"].shape == state["exp_avg"].shape


# A rank that fails, dies, or hangs


def trouble(tmp: Path, kind: str) -> int:
    """On each rank: a training in which something happens to rank 1 after two steps."""
    before = trainer.train_step

    def learn(state: Any, *args: Any) -> Any:
        if state.step == 2 and os.environ["RANK"] == "1":
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hangs":
                time.sleep(15)
            if kind == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "bug":
                raise ValueError("out of range")
            if kind == "user":
                raise process_group.UserError(
                    "data/x.jpg: cannot be read; run `plumage data` with the same --config and keys"
                )
        return before(state, *args)

    trainer.train_step = learn
    return ranks.run_verb("train", tmp, "distributed.timeout_s=6")


def killed_while_ended(tmp: Path) -> int:
    """On each rank: rank 1 is killed, and rank 0 gets SIGTERM while it finds that out, as torchrun has it."""
    before = Heartbeat.dead_ranks

    def silent(roll: Heartbeat) -> list[int]:
        os.kill(os.getpid(), signal.SIGTERM)
        return before(roll)

    Heartbeat.dead_ranks = silent  # type: ignore[method-assign]
    return trouble(tmp, "killed")


def test_a_rank_that_is_ended_meanwhile_still_names_the_one_that_died(birds: Path, tmp_path: Path) -> None:
    first, _ = ranks.run(killed_while_ended, 2, tmp_path)
    assert first.value == 75
    assert f"rank 1 on {os.uname().nodename}, process " in first.said
    assert "no longer answers" in first.said


@pytest.mark.parametrize(
    ("kind", "code", "why"),
    [
        ("killed", None, "no longer answers"),
        ("hangs", 75, "is alive but missed the collective"),
        ("user", 2, "data/x.jpg: cannot be read; run `plumage data` with the same --config and keys"),
        ("bug", 1, "a bug, ValueError: out of range"),
    ],
)
def test_when_a_rank_fails_the_others_end_and_say_which(
    birds: Path, tmp_path: Path, kind: str, code: int | None, why: str
) -> None:
    first, second = ranks.run(trouble, 2, tmp_path, kind)
    host = os.uname().nodename
    assert first.value == 75
    assert f"rank 1 on {host}, process " in first.said
    assert why in first.said
    assert "Traceback" not in first.said
    if kind == "killed":
        assert second.code == -signal.SIGKILL
    elif kind == "bug":
        assert second.code == 1
        assert "ValueError: out of range" in second.said
    else:
        assert second.value == code


def test_a_rank_whose_rendezvous_is_not_there_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(RankLost, match="rank 1 timed out waiting"),
        process_group.join(TrainConfig(device="cpu"), timeout_s=1),
    ):
        pass


def disagreeing(tmp: Path) -> int:
    """On each rank: a training with a learning rate of its own."""
    return ranks.run_verb("train", tmp, f"optim.lr=0.0{1 + int(os.environ['RANK'])}")


def test_ranks_with_unlike_configurations_refuse_to_start(birds: Path, tmp_path: Path) -> None:
    first, second = ranks.run(disagreeing, 2, tmp_path)
    assert (first.value, second.value) == (2, 2)
    assert (
        "rank 1 has a different configuration from rank 0: optim.lr 0.01 -> 0.02" in first.said + second.said
    )
    assert (first.said + second.said).count("error:") == 1


def test_more_ranks_than_images_in_a_batch_are_refused(birds: Path, tmp_path: Path) -> None:
    first, *others = ranks.run(ranks.run_verb, 3, "train", tmp_path, "optim.batch_size=2")
    assert [first.value, *(rank.value for rank in others)] == [2, 2, 2]
    assert "a batch of 2 images is too small for 3 ranks" in "".join(rank.said for rank in (first, *others))


# Data on one disk, and on several


def data_on(folders: list[str]) -> tuple[int, list[str]]:
    """On each rank: prepare the data in a folder of its own, or a shared one; exit code, and what it drew."""
    folder = Path(folders[int(os.environ["RANK"])])
    code = main.run(
        ["data", *tiny.overrides(folder, f"data.root={folder / 'data'}", "data.synthetic.seed=5")]
    )
    return code, sorted(path.name for path in (folder / "data").iterdir())


@pytest.mark.parametrize("disks", [1, 2])
def test_the_first_rank_of_each_disk_builds_the_data(tmp_path: Path, disks: int) -> None:
    folders = [str(tmp_path / str(rank % disks)) for rank in range(3)]
    ended = ranks.run(data_on, 3, folders)
    assert [rank.value[0] for rank in ended] == [0, 0, 0], ended[0].said
    tables = {table.read_bytes() for table in tmp_path.glob("*/data/synthetic*/samples*.csv")}
    assert len(tables) == 1
    assert len([*tmp_path.glob("*/data/synthetic*/samples*.csv")]) == disks
    assert all(len(rank.value[1]) == 1 for rank in ended), "nothing is left beside the data set"


def test_the_others_learn_why_the_data_cannot_be_built(tmp_path: Path) -> None:
    ended = ranks.run(
        ranks.run_verb, 2, "data", tmp_path, "data.source=cub200", f"data.archive={tmp_path / 'none.tgz'}"
    )
    assert [rank.value for rank in ended] == [2, 75]
    assert "none.tgz" in ended[0].said
    assert "error" not in ended[1].said
