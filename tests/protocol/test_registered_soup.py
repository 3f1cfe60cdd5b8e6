"""The mean of registered seeds is confirmatory where it was registered, too, and is never taken for one of the seeds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import run
from pipeline.common.errors import ConfigError
from pipeline.config.load import dump_departures, load_config
from pipeline.data import prepare
from pipeline.evaluation import confirmatory
from pipeline.protocol.preregister import preregister
from pipeline.runs import checkpoints, registration
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny
from tests.helpers.soup_runs import write_run


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """Two seeds of the tiny recipe, and their mean, which is better; none has read test."""
    root = tmp_path / "runs"
    runs = [write_run(trained, root, seed, apart) for seed, apart in ((0, 1.5), (1, -1.5))]
    (tmp_path / "tiny.yaml").write_text(
        dump_departures(tiny.config(tmp_path, "data.split_seed=0", f"run.root={root}"))
    )
    assert run(["soup", *map(str, runs), "run.name=mean", "train.device=cpu"]) == 0
    return root


def register(
    root: Path, soups: list[str], seeds: tuple[int, ...] = (0, 1), *more: str
) -> registration.Registration:
    compared = ["tiny", *map(registration.soup_of, soups)] if soups else []
    words = [root.parent / "tiny.yaml"], seeds, compared, soups, "top1", None
    return registration.read(Path(preregister(*words, more)["registration"]))


def judged(root: Path, name: str) -> dict[str, Any]:
    config = load_config(root / name / "config.yaml")
    return confirmatory.judge(config, prepare.load(config), {}).protocol


def test_a_registered_soup_is_confirmatory_beside_its_seeds(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = register(root, ["tiny"])
    assert found.comparison is not None
    assert (found.soups, found.comparison.arms) == (["tiny"], ["tiny", "soup-tiny"])
    capsys.readouterr()
    assert run(["eval", "--config", str(root / "mean/config.yaml")]) == 0
    protocol = json.loads(capsys.readouterr().out.splitlines()[-1])["protocol"]
    assert (protocol["status"], protocol["arm"], protocol["reasons"]) == ("confirmatory", "soup-tiny", [])
    assert judged(root, "seed0")["status"] == judged(root, "seed1")["status"] == "confirmatory"
    assert run(["verify", str(root / "mean"), "--images", "0", "--steps", "0"]) == 0
    claims = json.loads((root / "mean/certificate.json").read_text())["claims"]
    (claim,) = (claim for claim in claims if claim["about"] == "registration")
    assert claim["result"] == "holds"
    assert claim["found"][0].endswith("arm soup-tiny")


def test_the_comparison_of_a_soup_with_its_seeds_is_the_registered_one(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = register(root, ["tiny"])
    names = ("seed0", "seed1", "mean")
    for name in names:
        assert run(["eval", "--config", str(root / name / "config.yaml")]) == 0
    capsys.readouterr()
    assert run(["compare", *(str(root / name) for name in names)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["protocol"] == {
        "status": "registered",
        "reasons": [],
        "digest": found.digest,
        "written": found.written,
        "not_kept": [],
    }
    assert "registered: this comparison was fixed on 20" in said.err


def of_the_mean(root: Path, soup: str = "mean") -> tuple[str, str]:
    """Result and first finding of the claim about the weights of a soup."""
    run(["verify", str(root / soup), "--images", "0", "--steps", "1"])
    claims = json.loads((root / soup / "certificate.json").read_text())["claims"]
    assert not any(claim["about"].startswith("training") for claim in claims)
    (claim,) = (claim for claim in claims if claim["about"] == "mean of the weights")
    return claim["result"], claim["found"][0]


def test_verify_takes_the_mean_again(root: Path) -> None:
    assert of_the_mean(root) == ("holds", "best.pt is the mean of 2 runs, bit for bit")
    moved = root.rename(root.parent / "elsewhere")
    assert of_the_mean(moved)[0] == "holds"  # found beside the soup
    path = moved / "mean/checkpoints/best.pt"
    content = checkpoints.read(path)
    name = next(name for name in content["model"] if name.endswith("weight"))
    content["model"][name].view(-1)[0] += 1e-6
    checkpoints.save(path, content)
    assert of_the_mean(moved) == ("fails", f"best.pt: {name} is not the mean of the runs")
    (moved / "seed1/checkpoints/best.pt").write_bytes((moved / "seed0/checkpoints/best.pt").read_bytes())
    other = moved / "seed1/checkpoints/best.pt"
    assert of_the_mean(moved) == ("fails", f"{other}: is not the file that the mean was taken of")
    other.unlink()
    assert of_the_mean(moved) == ("not checked", f"{root / 'seed1'}: not here")


def test_another_soup_of_the_same_seeds_is_a_second_reading(root: Path) -> None:
    register(root, ["tiny"])
    assert run(["eval", "--config", str(root / "mean/config.yaml")]) == 0
    seeds = [str(root / name) for name in ("seed0", "seed1")]
    assert run(["soup", *seeds, "run.name=again", "train.device=cpu"]) == 0
    (reason,) = judged(root, "again")["reasons"]
    assert reason.startswith(f"{root / 'mean'} has read test with the same configuration and seed")


def test_a_soup_is_never_taken_for_a_registered_seed(root: Path) -> None:
    """Its configuration is that of the first seed."""
    register(root, [])
    assert judged(root, "mean")["reasons"] == ["it is a soup, and none of arm tiny is registered"]
    assert judged(root, "seed0")["status"] == "confirmatory"


def test_a_soup_of_some_of_the_seeds_or_of_other_code_is_exploratory(root: Path) -> None:
    found = register(root, ["tiny"], (0, 1, 2))
    (reason,) = judged(root, "mean")["reasons"]
    assert reason.startswith("it was chosen from the seeds 0, 1")
    path = RunDirectory(root / "mean").environment_file
    about = json.loads(path.read_text())
    about["soup"]["runs"][1] |= {"code_sha256": "0"}
    path.write_text(json.dumps(about))
    registration.write(
        registration.folder_of(root) / "two.json",
        (two := replace(found, seeds=[0, 1])) and replace(two, digest=two.computed_digest()),
    )
    (reason,) = judged(root, "mean")["reasons"]
    assert reason.startswith("a run that it was chosen from is trained by other code than was registered")


@pytest.mark.parametrize(
    ("soups", "seeds", "more", "sentence"),
    [
        (["other"], (0, 1), (), "--soup other: is none of the arms, tiny"),
        (["tiny"], (0,), (), "--soup tiny: a mean is of two or more seeds"),
        (["tiny"], (0, 1), ("data.split_seed=null",), "--soup tiny: each seed has other validation images"),
    ],
)
def test_a_soup_that_cannot_be_is_a_sentence(
    soups: list[str], seeds: tuple[int, ...], more: tuple[str, ...], sentence: str, root: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        register(root, soups, seeds, *more)


def test_a_registration_without_soups_has_the_digest_of_earlier_versions(root: Path) -> None:
    register(root, [])
    path = registration.folder_of(root) / "tiny.json"
    content = json.loads(path.read_text())
    del content["soups"]
    path.write_text(json.dumps(content))
    assert registration.read(path).soups == []
