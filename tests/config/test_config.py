"""A configuration is typed, strict and frozen, and says in words what is wrong with it."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.common.errors import ConfigError
from pipeline.config.load import completed, differences, dump_config, load_config
from pipeline.config.optim import Cosine, MultiStep
from pipeline.config.schema import Config
from pipeline.models.licences import licence_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
each_file = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def problem(*overrides: str) -> str:
    """What is said about overrides of the defaults."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return str(caught.value).removeprefix("overrides: ")


def problem_of_file(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("lr=1", "lr: unknown key; did you mean optim.lr?"),
        ("train.batch_size=8", "train.batch_size: unknown key; did you mean optim.batch_size?"),
        ("optm.lr=1", "optm: unknown key; did you mean optim?"),
        ("xyzzy=1", "xyzzy: unknown key; `plumage config` lists all keys"),
        ("optim.lr=fast", 'optim.lr: "fast" is not allowed; allowed: a number above 0'),
        ("optim.lr='1'", 'optim.lr: "1" is not allowed; allowed: a number above 0'),
        ("seed=true", "seed: true is not allowed; allowed: a whole number of at least 0"),
        ("seed=1.5", "seed: 1.5 is not allowed; allowed: a whole number of at least 0"),
        ("data.flip=1", "data.flip: 1 is not allowed; allowed: true or false"),
        ("data.flip=no", 'data.flip: "no" is not allowed; allowed: true or false'),
        ("model.name=", "model.name: null is not allowed; allowed: text"),
        ("data.root=", "data.root: null is not allowed; allowed: a path"),
        ("optim.lr=0", "optim.lr: 0 is not allowed; allowed: a number above 0"),
        ("seed=-1", "seed: -1 is not allowed; allowed: a whole number of at least 0"),
        (
            "data.val_fraction=1",
            "data.val_fraction: 1 is not allowed; allowed: a number of at least 0 and below 1",
        ),
        (
            "data.synthetic.species=201",
            "data.synthetic.species: 201 is not allowed; allowed: a whole number of at least 2 and of at most 200",
        ),
        ("data.folds=1", "data.folds: 1 is not allowed; allowed: a whole number of at least 2, or null"),
        ("optim.lr=.nan", "optim.lr: NaN is not allowed; allowed: a number above 0"),
        ("optim.lr=.inf", "optim.lr: Infinity is not allowed; allowed: a number above 0"),
        (
            "data.crop=rndom",
            'data.crop: "rndom" is not allowed; allowed: one of random, random_resized; did you mean random?',
        ),
        (
            "eval.split=everything",
            'eval.split: "everything" is not allowed; allowed: one of train, val, test',
        ),
        (
            "schedule.name=cosin",
            "schedule.name: cosin is not allowed; allowed: one of constant, step, multi_step, exponential, cosine, "
            "one_cycle, polynomial, plateau; did you mean cosine?",
        ),
        (
            "schedule.gamma=0.5",
            "schedule.gamma: unknown key; it belongs to schedule.name=step or multi_step or exponential or plateau",
        ),
        ("schedule.nmae=step", "schedule.nmae: unknown key; did you mean schedule.name?"),
        (
            "model.mean=[1, 2]",
            "model.mean: [1, 2] is not allowed; allowed: a list of 3, each a number, or null",
        ),
        (
            "schedule=cosin",
            'schedule: "cosin" is not allowed; allowed: keys with values, as {key: value}; did you mean '
            "schedule.name=cosine?",
        ),
        ("optim=3", "optim: 3 is not allowed; allowed: keys with values, as {key: value}"),
        (
            "run.name=../x",
            'run.name: "../x" is not allowed; allowed: text of letters, digits and . + - _ that begins with a letter, '
            "a digit or _, or null",
        ),
        ("optim.lr", "'optim.lr': not an override; write section.key=value, such as optim.lr=0.01"),
        ("=3", "'=3': not an override; write section.key=value, such as optim.lr=0.01"),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, sentence: str) -> None:
    assert problem(override) == sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.image_px=600"], "data: image_px 600 is larger than resize_px 512"),
        (["data.folds=3", "data.fold=3"], "data: fold 3 does not exist; with folds=3 they are 0 to 2"),
        (["data.fold=5"], "data: fold 5 is one of data.folds, which is null; give folds, or drop fold"),
        (
            ["model.weights=a.pth", "model.pretrained=false"],
            "model: weights are given although pretrained is false; drop one of the two",
        ),
        (
            ["data.synthetic.train_per_species=50"],
            "data.synthetic: train_per_species 50 must be below images_per_species 50: the rest are the test images",
        ),
        (
            ["schedule.name=multi_step", "schedule.gamma=[0.1]"],
            "schedule: gamma has 1 factors for 2 milestones; give one number, or a factor for each milestone",
        ),
        (
            ["schedule.name=multi_step", "schedule.milestones=[3, 2]"],
            "schedule: milestones must rise, and are [3, 2]",
        ),
        (
            ["schedule.name=multi_step", "schedule.gamma=x"],
            'schedule.gamma: "x" is not allowed; allowed: a number above 0, or a list, each a number above 0',
        ),
        (
            ["seed=1", "seed.x=2"],
            "seed.x: unknown key; seed has a value, not keys below it",
        ),
        (
            ["optim.phases=[{name: adam}, {name: sgd}]"],
            "optim: phases: every phase but the last needs `until`, and the last must have none",
        ),
        (
            ["optim.phases=[{name: adam, until: 9}, {name: adamw, until: 5}, {name: sgd}]"],
            "optim: phases: the epochs of `until` must rise, and are [9, 5]",
        ),
        (
            ["optim.phases=[{name: adam, until: 128}, {name: sgd}]"],
            "optim.phases: adam ends at epoch 128, the last of train.epochs=128; give `until` a smaller number",
        ),
        (
            ["optim.phases=[{name: adam, until: 9}, {name: sgd}]", "train.epochs=5"],
            "optim.phases: adam ends at epoch 9, beyond train.epochs=5; give `until` a smaller number",
        ),
        (
            ["schedule.warmup_epochs=10", "train.epochs=2"],
            "schedule.warmup_epochs: 10 leaves nothing of train.epochs=2; give a smaller number",
        ),
        (
            ["schedule.momentum_warmup_epochs=2.5", "train.epochs=2"],
            "schedule.momentum_warmup_epochs: 2.5 leaves nothing of train.epochs=2; give a smaller number",
        ),
        (
            ["schedule={name: multi_step, milestones: [3, 9]}", "train.epochs=9"],
            "schedule.milestones: 9 leaves nothing of train.epochs=9; give a smaller number",
        ),
        (
            ["schedule={name: step, every_epochs: 9}", "train.epochs=9"],
            "schedule.every_epochs: 9 leaves nothing of train.epochs=9; give a smaller number",
        ),
        (
            ["schedule.restart_epochs=9.5", "train.epochs=9"],
            "schedule.restart_epochs: 9.5 leaves nothing of train.epochs=9; give a smaller number",
        ),
        (
            ["optim.unfreeze_epoch=9", "train.epochs=9"],
            "optim.unfreeze_epoch: 9 leaves nothing of train.epochs=9; give a smaller number",
        ),
        (
            [
                "data.progressive=[{until_epoch: 3, image_px: 64}, {until_epoch: 9, image_px: 96}]",
                "train.epochs=9",
            ],
            "data.progressive: 9 leaves nothing of train.epochs=9; give a smaller number",
        ),
        (
            [
                "optim.phases=[{name: adam, until: 5}, {name: sgd, schedule: {name: cosine, warmup_epochs: 5}}]",
                "train.epochs=9",
            ],
            "optim.phases.1.schedule.warmup_epochs: 5 leaves nothing of the phase's 4 epochs; give a smaller number",
        ),
        (
            ["optim.phases=[{name: adam, until: 0}, {name: sgd}]"],
            "optim.phases.0.until: 0 is not allowed; allowed: a whole number of at least 1, "
            "or keys with values, as {key: value}, or null",
        ),
        (
            ["optim.phases=[{name: adam, until: {name: swat}}, {name: sgd}]"],
            "optim.phases.0.until.name: swat is not allowed; allowed: one of epoch, plateau, swats; did you mean swats?",
        ),
        (
            ["optim.phases=[{name: adam, until: {name: swats, epochs: 3}}, {name: sgd}]"],
            "optim.phases.0.until.epochs: unknown key; it belongs to optim.phases.0.until.name=plateau",
        ),
        (
            ["optim.phases=[{name: adam, until: 3}, {nmae: sgd}]"],
            "optim.phases.1.nmae: unknown key; did you mean optim.phases.1.name?",
        ),
        (
            ["optim.phases=[{name: adam, until: 3}, {name: sgd}]", "optim.phases.1.lr=fast"],
            'optim.phases.1.lr: "fast" is not allowed; allowed: a number above 0, or null',
        ),
        (
            ["optim.phases=[{name: sgd}]", "optim.phases.1.lr=1"],
            "optim.phases.1.lr: the list has 1 entries, counted from 0; there is no 1",
        ),
        (
            ["optim.phases=[{name: adam, carry_momentum: true}]"],
            "optim.phases.0: carry_momentum is for sgd, and the phase's optimizer is adam",
        ),
        (
            ["schedule.name=plateau", "data.val_fraction=0"],
            "schedule.name=plateau needs validation, and data.val_fraction is 0",
        ),
        (
            ["optim.batch_size=auto"],
            "optim: batch_size=auto needs effective_batch_size, the images of an optimizer step",
        ),
        (["optim.effective_batch_size=32"], "optim: effective_batch_size 32 is below batch_size 64"),
        (
            ["train.mix=[{name: mixup}, {name: cutmix, probability: 0.5}]"],
            "train: mix: the probabilities add up to 1.5, more than 1",
        ),
        (
            ["train.mix=[{name: cutmx}]"],
            'train.mix.0.name: "cutmx" is not allowed; allowed: one of mixup, cutmix, snapmix, activation_crop, '
            "activation_mask, activation_swap; did you mean cutmix?",
        ),
        (
            ["data.progressive=[{until_epoch: 3, image_px: 449}]"],
            "data: progressive: image_px 449 is larger than data.image_px 448",
        ),
        (
            ["data.progressive=[{until_epoch: 3, image_px: 64}, {until_epoch: 2, image_px: 96}]"],
            "data: progressive: until_epoch must rise from stage to stage, and is [3, 2]",
        ),
        (
            ["distributed.shard=full", "distributed.compress=bf16"],
            "distributed.shard=full does not support distributed.compress; drop one of the two",
        ),
        (
            ["distributed.shard=full", "train.compile=true"],
            "distributed.shard=full does not support train.compile; drop one of the two",
        ),
        (
            ["train.compile=true", "distributed.bucket_mb=0.5"],
            "distributed.bucket_mb=0.5 is below torch.compile's first bucket of 1 MiB; set it to 1 or more",
        ),
        (
            ["train.cuda_graphs=true"],
            "train.cuda_graphs records what torch.compile makes; set train.compile=true, too",
        ),
        *(
            (
                ["train.cuda_graphs=true", "train.compile=true", *more],
                "train.cuda_graphs takes each step in one pass; give optim.batch_size as a number, and no more images "
                "a step",
            )
            for more in (
                ["optim.batch_size=8", "optim.effective_batch_size=16"],
                ["optim.batch_size=auto", "optim.effective_batch_size=16"],
                [
                    "optim.batch_size=8",
                    "data.progressive=[{until_epoch: 3, image_px: 64, images_per_step: 16}]",
                ],
            )
        ),
        (["lr_find.lowest=1", "lr_find.highest=0.1"], "lr_find: lowest 1 must be below highest 0.1"),
    ],
)
def test_keys_that_do_not_agree_are_one_sentence(overrides: list[str], sentence: str) -> None:
    assert problem(*overrides) == sentence


def test_what_ends_just_within_the_training_is_allowed() -> None:
    for overrides in (
        ["schedule.warmup_epochs=9"],
        ["schedule={name: multi_step, milestones: [3, 8]}"],
        ["schedule={name: step, every_epochs: 8}"],
        ["schedule.restart_epochs=9"],
        ["optim.unfreeze_epoch=8"],
        ["data.progressive=[{until_epoch: 8, image_px: 64}]"],
        ["optim.phases=[{name: adam, until: 5}, {name: sgd, schedule: {name: cosine, warmup_epochs: 4}}]"],
        ["optim.phases=[{until: {name: plateau}}, {schedule: {name: cosine, warmup_epochs: 9}}]"],
    ):
        assert load_config(None, ["train.epochs=9", *overrides]).train.epochs == 9


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    text = "optim: {lr: fast, batch_size: 0}\nseeed: 3\ndata: {crop: rndom}\n"
    lines = problem_of_file(path, text).splitlines()
    assert lines[0] == f"{path}: 4 problems"
    assert sorted(line.split(":")[0] for line in lines[1:]) == [
        "  data.crop",
        "  optim.batch_size",
        "  optim.lr",
        "  seeed",
    ]


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "brids.yaml")
    nearest = tmp_path / "birds.yaml"
    assert str(caught.value).endswith(f"brids.yaml: no such configuration file; did you mean {nearest}?")
    with pytest.raises(ConfigError, match=r"give the path of a \.yaml file$"):
        load_config(tmp_path / "nowhere" / "cats.yaml")


def test_a_link_that_leads_nowhere_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").symlink_to("elsewhere.yaml")
    with pytest.raises(
        ConfigError, match=r"birds\.yaml: .* it is a link to elsewhere\.yaml, which is missing$"
    ):
        load_config(tmp_path / "birds.yaml")
    with pytest.raises(ConfigError, match=r"give the path of a \.yaml file$"):
        load_config(tmp_path / "brids.yaml")


@pytest.mark.parametrize("text", ["optim: [1", "optim:\n  lr: 1\n seed: 2", "\tseed: 1"])
def test_a_file_that_is_not_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    message = problem_of_file(tmp_path / "birds.yaml", text)
    assert message.startswith(f"{tmp_path / 'birds.yaml'}: not readable as YAML: ")
    assert "\n" not in message


def test_bytes_that_are_not_text_and_a_folder_are_not_readable(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "birds.yaml", tmp_path):
        with pytest.raises(ConfigError, match="not readable as YAML"):
            load_config(path)


@pytest.mark.parametrize(
    ("text", "kind"), [("- seed\n", "a list"), ("hello\n", "a single value"), ("3\n", "a single value")]
)
def test_a_file_without_keys_at_its_top_is_told_what_it_holds(tmp_path: Path, text: str, kind: str) -> None:
    message = problem_of_file(tmp_path / "birds.yaml", text)
    assert message.endswith(f"holds {kind}; a configuration is made of `section: {{key: value}}`")


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "optim: {lr: 1, lr: 2}\n"])
def test_a_key_given_twice_is_an_error(tmp_path: Path, text: str) -> None:
    assert "found duplicate key" in problem_of_file(tmp_path / "birds.yaml", text)


def test_a_key_that_is_a_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    assert problem_of_file(path, "? [seed, b]\n: 3\n") == f"{path}: a key is a list; write each key as text"


def test_numbers_and_text_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("run: {name: no}\noptim: {lr: 1e-3, weight_decay: 5E-05}\n")
    config = load_config(path)
    assert config.run.name == "no"
    assert (config.optim.lr, config.optim.weight_decay) == (0.001, 0.00005)
    assert load_config(None, ["optim.lr=2e-3", "run.name=off"]).optim.lr == 0.002


def test_overrides_win_over_the_file_and_the_last_one_over_all(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("optim: {lr: 1, batch_size: 8}\n")
    config = load_config(path, ["optim.lr=2", "optim.lr=3", "data.folds=5", "schedule={name: multi_step}"])
    assert (config.optim.lr, config.optim.batch_size, config.data.folds) == (3, 8, 5)
    assert config.schedule == MultiStep()
    assert load_config(path, ["data.workers="]).data.workers is None


def test_an_entry_of_a_list_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("optim: {phases: [{name: adam, until: 10}, {name: sgd}]}\n")
    phases = load_config(path, ["optim.phases.0.until=5", "optim.phases.1={name: adamw}"]).optim.phases
    assert [(phase.name, phase.until) for phase in phases] == [("adam", 5), ("adamw", None)]


def test_phases_take_what_they_leave_open_from_optim() -> None:
    swats = "optim.phases=[{name: adam, lr: 1e-3, until: {name: swats}}, {name: sgd}, {name: adamw, momentum: 0.5}]"
    with pytest.raises(ConfigError, match="every phase but the last"):
        load_config(None, [swats])
    optim = load_config(None, [swats, "optim.phases.1.until=30"]).optim
    adam, sgd, adamw = optim.resolved_phases
    assert (adam.lr, adam.momentum, adam.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (sgd.lr, sgd.nesterov) == (None, True)  # SWATS proposes it
    assert (adamw.lr, adamw.momentum) == (0.025, 0.5)
    (alone,) = load_config(None, ["optim.name=adam", "optim.options={eps: 1e-6}"]).optim.resolved_phases
    assert (alone.name, alone.lr, alone.options) == ("adam", 0.025, {"eps": 1e-6})


def test_phases_are_resolved_once_and_anew_for_a_copy() -> None:
    optim = load_config(None).optim
    (phase,) = optim.resolved_phases
    assert optim.resolved_phases[0] is phase
    assert optim == load_config(None).optim  # the other one has not resolved them
    (copied,) = optim.model_copy(update={"lr": 1.0}).resolved_phases
    assert (phase.lr, copied.lr) == (0.025, 1.0)


@pytest.mark.parametrize("source", ["folder", "csv", "hugging_face"])
def test_pictures_of_ones_own_may_bring_validation(source: str) -> None:
    own = [f"data.source={source}", "data.path=birds", "data.val_fraction=0"]
    config = load_config(None, [*own, "train.early_stop_epochs=3", "schedule.name=plateau"])
    assert config.needs_validation == ["schedule.name=plateau", "train.early_stop_epochs"]
    assert config.why_no_validation is None and not config.data.holds_out
    assert "train.refit learns from its images" in problem(
        *own, "train.eval_every_steps=3", "train.refit=runs/a"
    )


def test_an_empty_section_takes_the_keys_of_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data:\nrun:\noptim: {phases: [{name: sgd, until: }]}\ntrain: {refit: null}\n")
    config = load_config(path, ["data.image_px=100", "data.synthetic.species=3", "run.name=b"])
    assert (config.data.image_px, config.data.synthetic.species, config.run.name) == (100, 3, "b")
    path.write_text("seed:\n")
    with pytest.raises(ConfigError, match="seed: .* is not allowed; allowed: a whole number"):
        load_config(path, ["seed.a=1"])


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("# nothing departs\n")
    assert load_config(path, ["run.name=baseline"]) == load_config(None)
    assert load_config(None).schedule == Cosine()


def test_the_run_is_called_after_the_file_unless_it_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("seed: 1\n")
    assert load_config(path).run_dir == Path("runs/birds")
    assert load_config(path, ["run.name=owls", "run.root=/elsewhere"]).run_dir == Path("/elsewhere/owls")
    assert load_config(None).run_dir == Path("runs/baseline")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my birds.yaml", "my_birds"),
        ("-x.yaml", "_x"),
        (".hidden.yaml", "_hidden"),
        ("Dömo+1.2.yaml", "Dömo+1.2"),
    ],
)
def test_a_run_can_be_called_after_any_file(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("seed: 1\n")
    assert load_config(tmp_path / file).run.name == name


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config(None)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 3.0  # type: ignore[misc]
    assert (config.seed, config.optim.lr) == (0, 0.025)


@each_file
@pytest.mark.parametrize("comments", [False, True])
def test_what_is_dumped_is_loaded_again(tmp_path: Path, path: Path, comments: bool) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config, comments))
    assert load_config(copy) == config


def test_comments_say_what_a_key_means() -> None:
    lines = dump_config(load_config(None), comments=True).splitlines()
    flip = next(line for line in lines if line.strip().startswith("flip:"))
    assert re.fullmatch(r"  flip: true +# horizontal mirroring of half of the training images", flip)


def test_differences_are_named_by_their_dotted_keys() -> None:
    a, b = (
        load_config(None, overrides).model_dump(mode="json")
        for overrides in ([], ["optim.lr=1", "data.folds=5", "schedule.name=constant"])
    )
    assert list(differences(a, b)) == [
        ("data.folds", None, 5),
        ("optim.lr", 0.025, 1.0),
        ("schedule.final_factor", 0.0, None),
        ("schedule.name", "cosine", "constant"),
        ("schedule.restart_multiplier", 1.0, None),
    ]
    assert list(differences(a, a)) == []


@each_file
def test_a_file_is_short_and_its_header_has_a_command_and_a_result(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert len(lines) <= 30
    assert lines[0].startswith("# ")
    assert re.search(r"^#   make ", header, re.M)
    assert re.search(r"Hardware: ", header)
    assert re.search(r"Expected: .*\d|Measured: .*\d|[Nn]ot yet run", header)
    assert not load_config(path).model.pretrained or "licence" in header


@each_file
def test_a_file_departs_from_the_defaults_or_states_a_recipe_that_is_valid(path: Path) -> None:
    assert load_config(path).run.name == path.stem
    assert list(differences(Config().model_dump(mode="json"), load_config(path).model_dump(mode="json")))


def test_a_configuration_of_an_earlier_version_has_the_defaults_of_newer_keys() -> None:
    now = load_config(None, ["optim.lr=0.5", "schedule={name: multi_step, milestones: [2]}"]).model_dump(
        mode="json"
    )
    earlier = {section: value for section, value in now.items() if section != "summary"}
    earlier["data"] = {key: value for key, value in now["data"].items() if key != "pad_px"}
    assert [*differences(completed(earlier), now)] == []
    earlier["data"]["flip"] = False
    assert [*differences(completed(earlier), now)] == [("data.flip", False, True)]


@each_file
def test_a_published_accuracy_stands_beside_what_is_needed_to_compare_with_it(path: Path) -> None:
    header = " ".join(line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    if "Expected" in header and path.stem != "smoke":
        assert re.search(r"Expected: with data\.val_fraction=0\b.* \d\d\.\d+ % test top-1", header)
        assert "less where a tenth" in header
        assert load_config(path).data.val_fraction == 0.1


@each_file
def test_the_licence_in_a_header_is_that_of_the_weights(path: Path) -> None:
    config = load_config(path).model
    if config.pretrained and config.weights is None and "pad_type" not in config.options:
        header = path.read_text().casefold()
        assert config.name == "resnet50" or f"licence {licence_of(config.name, {})}" in header


def test_strong_has_the_settings_of_its_authors_code() -> None:
    """Shaoli-Huang/SnapMix: utils/conf.py, utils/trainutil.py, datasets/tfs.py and config/comm.yml, with --midlevel."""
    config = load_config(CONFIGS[0].parent / "strong.yaml")
    data, optim, train = config.data, config.optim, config.train
    assert (data.resize, data.resize_px, data.image_px, data.crop) == ("short_side", 512, 448, "random")
    assert (data.flip, data.pad_px, data.color_jitter, config.eval.tta) == (True, 0, 0, "none")
    assert (optim.name, optim.lr, optim.head_lr_multiplier, optim.momentum) == ("sgd", 0.001, 10, 0.9)
    assert (optim.nesterov, optim.weight_decay, optim.batch_size) == (True, 1e-4, 16)
    assert config.schedule == MultiStep(milestones=(80, 150, 180), gamma=0.1)
    assert (train.epochs, train.label_smoothing, train.ema_decay) == (200, 0, 0)
    assert [(mix.name, mix.alpha, mix.probability) for mix in train.mix] == [("snapmix", 5, 1)]
    assert config.model.mid_level_head


def test_a_fault_is_laid_to_the_file_or_to_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("optim: {lr: 0.1}\n")
    with pytest.raises(ConfigError, match=r"^overrides: optim\.lrr: unknown key; did you mean optim\.lr\?"):
        load_config(path, ["optim.lrr=1"])
    path.write_text("optim: {lrr: 0.1}\n")
    with pytest.raises(ConfigError, match=r"birds\.yaml: 2 problems"):
        load_config(path, ["optim.momentumm=1"])
