"""A configuration is typed, strict and frozen, and says in words what is wrong with it."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import Config, Cosine, Step
from pipeline.config_file import differences, dump, load
from pipeline.errors import ConfigError
from pipeline.schedule import lr_at

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
each_file = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def problem(*overrides: str) -> str:
    """What is said about overrides of the defaults."""
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    return str(caught.value).removeprefix("the defaults: ")


def problem_of_file(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("lr=1", "lr: unknown key; did you mean optim.lr?"),
        ("train.batch_size=8", "train.batch_size: unknown key; did you mean optim.batch_size?"),
        ("optm.lr=1", "optm: unknown key; did you mean optim?"),
        ("xyzzy=1", "xyzzy: unknown key; `python -m pipeline config` lists all keys"),
        ("optim.lr=fast", 'optim.lr: "fast" is not allowed; allowed: a number above 0'),
        ("optim.lr='1'", 'optim.lr: "1" is not allowed; allowed: a number above 0'),
        ("seed=true", "seed: true is not allowed; allowed: a whole number of at least 0"),
        ("seed=1.5", "seed: 1.5 is not allowed; allowed: a whole number of at least 0"),
        ("data.flip=1", "data.flip: 1 is not allowed; allowed: true or false"),
        ("data.flip=no", 'data.flip: "no" is not allowed; allowed: true or false'),
        ("model.name=3", "model.name: 3 is not allowed; allowed: text"),
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
            "schedule.name: cosin is not allowed; allowed: one of constant, cosine, step; did you mean cosine?",
        ),
        ("schedule.gamma=0.5", "schedule.gamma: unknown key; it belongs to schedule.name=step"),
        ("schedule.nmae=step", "schedule.nmae: unknown key; did you mean schedule.name?"),
        (
            "model.mean=[1, 2]",
            "model.mean: [1, 2] is not allowed; allowed: a list of 3, each a number, or null",
        ),
        ("schedule=step", 'schedule: "step" is not allowed; allowed: keys with values, as {key: value}'),
        ("optim=3", "optim: 3 is not allowed; allowed: keys with values, as {key: value}"),
        (
            "run.name=../x",
            r'run.name: "../x" is not allowed; allowed: text that matches ^[\w][\w.+-]*$, or null',
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
        (["data.folds=3", "data.fold=3"], "data: fold 3 does not exist: folds 3 counts from 0"),
        (
            ["model.weights=a.pth", "model.pretrained=false"],
            "model: weights are given although pretrained is false; drop one of the two",
        ),
        (
            ["data.synthetic.train_per_species=50"],
            "data.synthetic: train_per_species has to be smaller than images_per_species",
        ),
        (
            ["schedule.name=step", "schedule.gamma=[0.1]"],
            "schedule: gamma has 1 factors for 2 milestones",
        ),
        (["schedule.name=step", "schedule.milestones=[3, 2]"], "schedule: milestones have to rise"),
        (
            ["schedule.name=step", "schedule.gamma=x"],
            'schedule.gamma: "x" is not allowed; allowed: a number above 0, or a list, each a number above 0',
        ),
        (
            ["seed=1", "seed.x=2"],
            "seed.x: unknown key; seed has a value of its own, not keys below it",
        ),
    ],
)
def test_keys_that_do_not_agree_are_one_sentence(overrides: list[str], sentence: str) -> None:
    assert problem(*overrides) == sentence


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
        load(tmp_path / "brids.yaml")
    nearest = tmp_path / "birds.yaml"
    assert str(caught.value).endswith(f"brids.yaml: no such configuration file; did you mean {nearest}?")
    with pytest.raises(ConfigError, match=r"give the path of a \.yaml file$"):
        load(tmp_path / "nowhere" / "cats.yaml")


@pytest.mark.parametrize(
    "text", ["optim: [1", "optim:\n  lr: 1\n seed: 2", "\tseed: 1", "a: !!python/none x"]
)
def test_a_file_that_is_not_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    message = problem_of_file(tmp_path / "birds.yaml", text)
    assert message.startswith(f"{tmp_path / 'birds.yaml'}: not readable as YAML: ")
    assert "\n" not in message


def test_bytes_that_are_not_text_and_a_folder_are_not_readable(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "birds.yaml", tmp_path):
        with pytest.raises(ConfigError, match="not readable as YAML"):
            load(path)


@pytest.mark.parametrize(("text", "kind"), [("- seed\n", "list"), ("hello\n", "str"), ("3\n", "int")])
def test_a_file_without_keys_at_its_top_is_told_what_it_holds(tmp_path: Path, text: str, kind: str) -> None:
    message = problem_of_file(tmp_path / "birds.yaml", text)
    assert message.endswith(f"holds {kind}; a configuration is made of `section: {{key: value}}`")


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "optim: {lr: 1, lr: 2}\n"])
def test_a_key_given_twice_is_an_error(tmp_path: Path, text: str) -> None:
    assert "found duplicate key" in problem_of_file(tmp_path / "birds.yaml", text)


def test_a_key_that_is_a_list_is_an_error(tmp_path: Path) -> None:
    assert "keys must be str" in problem_of_file(tmp_path / "birds.yaml", "? [seed, b]\n: 3\n")


def test_numbers_and_text_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("run: {name: no}\noptim: {lr: 1e-3, weight_decay: 5E-05}\n")
    config = load(path)
    assert config.run.name == "no"
    assert (config.optim.lr, config.optim.weight_decay) == (0.001, 0.00005)
    assert load(None, ["optim.lr=2e-3", "run.name=off"]).optim.lr == 0.002


def test_overrides_win_over_the_file_and_the_last_one_over_all(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("optim: {lr: 1, batch_size: 8}\n")
    config = load(path, ["optim.lr=2", "optim.lr=3", "data.folds=5", "schedule={name: step}"])
    assert (config.optim.lr, config.optim.batch_size, config.data.folds) == (3, 8, 5)
    assert config.schedule == Step()
    assert load(path, ["data.workers="]).data.workers is None


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("# nothing departs\n")
    assert load(path, ["run.name=baseline"]) == load(None)
    assert load(None).schedule == Cosine()


def test_the_run_is_called_after_the_file_unless_it_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("seed: 1\n")
    assert load(path).run_dir == Path("runs/birds")
    assert load(path, ["run.name=owls", "run.root=/elsewhere"]).run_dir == Path("/elsewhere/owls")
    assert load(None).checkpoints_dir == Path("runs/baseline/checkpoints")


def test_a_configuration_cannot_be_changed() -> None:
    config = load(None)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 3.0  # type: ignore[misc]
    assert (config.seed, config.optim.lr) == (0, 0.025)


@each_file
@pytest.mark.parametrize("comments", [False, True])
def test_what_is_dumped_is_loaded_again(tmp_path: Path, path: Path, comments: bool) -> None:
    config = load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(config, comments))
    assert load(copy) == config


def test_comments_say_what_a_key_means() -> None:
    lines = dump(load(None), comments=True).splitlines()
    flip = next(line for line in lines if line.strip().startswith("flip:"))
    assert re.fullmatch(r"  flip: true +# mirror half of the training images", flip)


def test_differences_are_named_by_their_dotted_keys() -> None:
    one, other = (
        load(None, overrides).model_dump(mode="json")
        for overrides in ([], ["optim.lr=1", "data.folds=5", "schedule.name=constant"])
    )
    assert list(differences(one, other)) == [
        ("data.folds", None, 5),
        ("optim.lr", 0.025, 1.0),
        ("schedule.final_factor", 0.0, None),
        ("schedule.name", "cosine", "constant"),
    ]
    assert list(differences(one, one)) == []


@each_file
def test_a_file_is_short_and_its_header_has_a_command_and_a_result(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert len(lines) <= 30
    assert lines[0].startswith("# ")
    assert re.search(r"^#   make ", header, re.M)
    assert re.search(r"Hardware: ", header)
    assert re.search(r"Expected: .*\d|Measured: .*\d|[Nn]ot yet run", header)


@each_file
def test_a_file_departs_from_the_defaults_or_states_a_recipe_that_is_valid(path: Path) -> None:
    assert load(path).run.name == path.stem
    assert list(differences(Config().model_dump(mode="json"), load(path).model_dump(mode="json")))


def test_the_articles_learning_rates_are_those_of_its_schedule() -> None:
    config = load(next(path for path in CONFIGS if path.stem == "cub200_resnet50_step"))
    steps_per_epoch = 750
    rates = {
        epoch: lr_at(
            config.schedule, config.optim.lr, epoch * steps_per_epoch, steps_per_epoch, config.train.epochs
        )
        for epoch in (0, 19, 20, 29, 30, 49, 50, 87)
    }
    assert rates == pytest.approx(
        {0: 2e-3, 19: 2e-3, 20: 1e-3, 29: 1e-3, 30: 5e-4, 49: 5e-4, 50: 1e-4, 87: 1e-4}, rel=1e-12
    )
    assert (config.optim.batch_size, config.optim.weight_decay, config.train.epochs) == (8, 5e-5, 88)
