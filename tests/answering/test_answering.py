"""Answers at a rank, sure answers, and the roll-up: from outputs by hand, and by the verb from a run's own files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.answering.answer_files import Answer
from pipeline.answering.answering import Answering
from pipeline.answering.picture_outputs import Outputs
from pipeline.answering.priors import Posterior
from pipeline.cli import main
from pipeline.data import prepare, sample_table
from pipeline.data.taxonomy import Taxonomy
from pipeline.evaluation.set_rule import SetRule
from pipeline.evaluation.thresholds import RankThresholds, Threshold, Thresholds
from pipeline.runs.directory import RunDirectory
from tests.helpers import own_pictures, tiny

TREE = Taxonomy(
    ("Arctic tern", "common tern", "crow", "rook"),
    {"genus": ("Sterna", "Sterna", "Corvus", "Corvus"), "order": ("x", "x", "x", "x")},
)


def at(probability: float) -> Threshold:
    return Threshold(probability, 100, 80, 80, shown=True)


CHOSEN = Thresholds(
    checkpoint_sha256="",
    tta="none",
    temperature=1.0,
    taxonomy=TREE.digest,
    promise=0.95,
    ranks={
        "class": RankThresholds(at(0.7), {"crow": at(0.9)}),
        "genus": RankThresholds(at(0.8), {}),
        "order": RankThresholds(at(0.1), {}),
    },
    roll_up=at(0.85),
)


def answer(probability: list[float], top: int = 2, **about: Any) -> Answer:
    """What is said of a picture whose classes have these probabilities."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(probability)).astype(np.float32)
    posterior = about.pop("posterior", Posterior(1.0, np.zeros(4)))
    shown = Answering(TREE.classes, posterior, **{"taxonomy": TREE, "thresholds": CHOSEN, **about})
    outputs = Outputs(Path("a.jpg"), np.zeros((2, 2, 3), np.uint8), logits, np.ones(3, np.float32))
    return shown.answer(outputs, top)


def cells(found: Answer) -> list[object]:
    assert found.judgement is not None
    return list(found.judgement.cells.values())


@pytest.mark.parametrize(
    ("probability", "expected", "words"),
    [
        ([0.75, 0.05, 0.1, 0.1], [True, "Arctic tern", "class", 0.75], "sure"),
        ([0.5, 0.4, 0.05, 0.05], [False, "Sterna", "genus", 0.9], "genus Sterna, 0.900"),
        ([0.1, 0.0, 0.8, 0.1], [False, "Corvus", "genus", 0.9], "genus Corvus, 0.900"),
        ([0.02, 0.03, 0.95, 0.0], [True, "crow", "class", 0.95], "sure"),
        ([0.3, 0.2, 0.3, 0.2], [False, "x", "order", 1.0], "order x, 1.000"),
    ],
)
def test_the_class_where_it_is_sure_else_the_finest_node_that_is(
    probability: list[float], expected: list[object], words: str
) -> None:
    found = answer(probability)
    assert cells(found) == [
        pytest.approx(one, abs=1e-6) if isinstance(one, float) else one for one in expected
    ]
    assert found.judgement is not None and found.judgement.words == words
    assert list(found.judgement.cells) == ["sure", "answer", "answer_rank", "answer_probability"]


def test_where_no_node_is_probable_enough_there_is_no_answer() -> None:
    tree = Taxonomy(TREE.classes, {"genus": TREE.nodes["genus"]})
    found = answer([0.3, 0.2, 0.3, 0.2], taxonomy=tree)
    assert cells(found) == [False, None, None, None]
    assert found.judgement is not None and found.judgement.words == "unsure"


def test_answers_at_a_rank_are_sums_after_temperature_and_prior() -> None:
    found = answer([0.4, 0.3, 0.2, 0.1], rank="genus")
    assert found.classes == (("Sterna", pytest.approx(0.7)), ("Corvus", pytest.approx(0.3)))
    assert cells(found) == [False], "0.7 is below the threshold of the rank, which is no roll-up"
    assert cells(answer([0.5, 0.4, 0.1, 0.0], rank="genus")) == [True]
    sharper = answer([0.4, 0.3, 0.2, 0.1], rank="genus", posterior=Posterior(0.5, np.zeros(4)))
    assert sharper.classes[0] == ("Sterna", pytest.approx((0.16 + 0.09) / 0.30))
    with np.errstate(divide="ignore"):
        of_terns = Posterior(1.0, np.log(np.array([0.0, 1.0, 0.0, 0.0])))
    assert answer([0.4, 0.3, 0.2, 0.1], rank="genus", posterior=of_terns).classes == (
        ("Sterna", pytest.approx(1.0)),
    ), "a node none of whose classes occurs is not answered"


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ([0.1, 0.2, 0.4, 0.3], ["crow", "rook", "common tern"]),
        ([0.1, 0.0, 0.8, 0.1], ["crow"]),
        ([0.19, 0.19, 0.44, 0.18], ["crow"]),
    ],
)
def test_a_prediction_set_names_its_classes_the_likeliest_first(
    probability: list[float], expected: list[str]
) -> None:
    """Whatever the temperature of the probabilities: the rule holds without it."""
    rule = SetRule("lac", 0.9, 99, 0.805)  # a class with at least 0.195 is inside
    about = {"set_rule": rule, "posterior": Posterior(0.5, np.zeros(4))}
    found = answer(probability, thresholds=None, **about).judgement
    assert found is not None
    assert found.cells == {"prediction_set": expected}
    assert found.words == f"one of {len(expected)} with 90%"
    both = answer(probability, **about).judgement
    assert both is not None and both.words.endswith(found.words)
    assert list(both.cells)[-1] == "prediction_set"


def test_without_thresholds_nothing_is_judged_and_without_a_hierarchy_only_the_class() -> None:
    assert answer([0.4, 0.3, 0.2, 0.1], thresholds=None).judgement is None
    alone = Thresholds(**{**vars(CHOSEN), "taxonomy": "", "roll_up": None})
    assert cells(answer([0.4, 0.3, 0.2, 0.1], thresholds=alone, taxonomy=None)) == [False]


def tiny_tree(tmp: Path) -> tuple[Path, Taxonomy]:
    """A hierarchy of the tiny birds: two genera of three species, one family."""
    names = sample_table.class_names(prepare.load(tiny.config(tmp)).samples)
    tree = Taxonomy(
        tuple(names), {"genus": ("G1", "G1", "G1", "G2", "G2", "G2"), "family": ("F",) * len(names)}
    )
    tree.write(tmp / "tree.csv")
    return tmp / "tree.csv", tree


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run(["predict", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_eval_puts_hierarchy_and_thresholds_into_the_run_and_predict_needs_nothing_else(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path, tree = tiny_tree(tmp_path)
    run, picture = tmp_path / "runs/tiny", tmp_path / "a.png"
    Image.effect_noise((50, 40), 80).convert("RGB").save(picture)
    assert main.run(["predict", str(run), str(picture), "--rank", "genus"]) == 2
    assert (
        f"--rank genus: {run} has no hierarchy; give one with data.taxonomy=FILE" in capsys.readouterr().err
    )
    given = said(capsys, str(run), str(picture), "--rank", "genus", f"data.taxonomy={path}")
    assert {entry["class"] for entry in given["predictions"][0]["classes"]} == {"G1", "G2"}
    assert tiny.do("eval", tmp_path, f"data.taxonomy={path}") == 0
    assert RunDirectory(run).taxonomy_file.read_text() == path.read_text()
    path.unlink()
    run = run.rename(tmp_path / "moved")
    species = said(capsys, str(run), str(picture), "--top", "6")
    genera = said(capsys, str(run), str(picture), "--rank", "genus")
    assert genera["rank"] == "genus" and "rank" not in species
    sums = dict.fromkeys(("G1", "G2"), 0.0)
    for entry in species["predictions"][0]["classes"]:
        sums[tree.nodes["genus"][tree.classes.index(entry["class"])]] += entry["probability"]
    at_genus = {entry["class"]: entry["probability"] for entry in genera["predictions"][0]["classes"]}
    assert at_genus == pytest.approx(sums)
    judged = species["predictions"][0]
    assert judged["answer_rank"] in ("class", "genus", "family") and judged["sure"] in (True, False)
    assert judged["sure"] == (judged["answer_rank"] == "class")
    assert main.run(["predict", str(run), str(picture), "--rank", "order"]) == 2
    error = capsys.readouterr().err
    assert (
        f"--rank order: no such rank in the hierarchy of {run}; its ranks are class, genus, family" in error
    )


def test_the_evaluated_split_has_no_part_in_the_thresholds(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path, _ = tiny_tree(tmp_path)
    chosen = []
    for split in ("test", "train"):
        assert tiny.do("eval", tmp_path, f"data.taxonomy={path}", f"eval.split={split}") == 0
        chosen.append(RunDirectory(tmp_path / "runs/tiny").evaluation(split).thresholds_file.read_text())
    assert chosen[0] == chosen[1]
    assert tiny.do("eval", tmp_path, "eval.split=val") == 0
    assert not RunDirectory(tmp_path / "runs/tiny").evaluation("val").thresholds_file.exists()


def test_columns_of_a_file_say_what_is_sure(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path, _ = tiny_tree(tmp_path)
    assert tiny.do("eval", tmp_path, f"data.taxonomy={path}") == 0
    chosen = RunDirectory(tmp_path / "runs/tiny").evaluation("test").thresholds_file
    shown = capsys.readouterr().err
    assert (
        "  class: sure from 0.950, as 6 validation images support no lower one" in shown
        and "  a node above a class that is not sure: from 0.950, as " in shown
    )
    content = json.loads(chosen.read_text())
    assert content["ranks"]["class"]["own"] == {} and content["ranks"]["class"]["common"]["n"] == 6
    assert content["roll_up"]["probability"] == 0.95 and not content["roll_up"]["shown"]
    content["ranks"]["class"]["common"]["probability"] = 2.0
    content["roll_up"]["probability"] = 0.999
    chosen.write_text(json.dumps(content))
    (tmp_path / "mine").mkdir()
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "mine/a.png")
    (tmp_path / "mine/b.png").write_bytes(b"no picture")
    words = ["predict", str(tmp_path / "runs/tiny"), str(tmp_path / "mine"), "--top", "1"]
    capsys.readouterr()
    assert main.run([*words, "--csv", str(tmp_path / "a.csv")]) == 2
    assert "sure from 2.000, as 6 validation images support no lower one" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    judged = ["sure", "answer", "answer_rank", "answer_probability"]
    assert list(table) == ["image", "class_1", "probability_1", *judged, "error"]
    assert table[judged[:3]].to_numpy().tolist() == [["false", "F", "family"], ["", "", ""]]
    assert main.run([*words, "--parquet", str(tmp_path / "a.parquet")]) == 2
    rows = pd.read_parquet(tmp_path / "a.parquet")
    assert rows["sure"].tolist() == [False, None] and rows["answer_probability"][0] == pytest.approx(1)


def test_with_a_prior_nothing_is_called_sure_and_nothing_is_rolled_up(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thresholds were chosen on pictures that come as validation's do."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path, tree = tiny_tree(tmp_path)
    assert tiny.do("eval", tmp_path, f"data.taxonomy={path}") == 0
    picture, prior = tmp_path / "a.png", tmp_path / "prior.csv"
    Image.effect_noise((50, 40), 80).convert("RGB").save(picture)
    prior.write_text("class,weight\n" + "".join(f"{name},{n}\n" for n, name in enumerate(tree.classes, 1)))
    words = [str(tmp_path / "runs/tiny"), str(picture)]
    for rank in ("class", "genus"):
        capsys.readouterr()
        assert main.run(["predict", *words, "--rank", rank]) == 0
        without = capsys.readouterr()
        assert "; sure from " in without.err and '"sure"' in without.out
        assert main.run(["predict", *words, "--rank", rank, "--prior", str(prior)]) == 0
        with_prior = capsys.readouterr()
        assert f"; prior {prior}" in with_prior.err and "sure" not in with_prior.err
        assert not {"sure", "answer"} & set(json.loads(with_prior.out)["predictions"][0])


def test_another_hierarchy_than_the_run_has_is_said_and_report_takes_it_over(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path, tree = tiny_tree(tmp_path)
    assert tiny.do("eval", tmp_path, f"data.taxonomy={path}") == 0
    Taxonomy(tree.classes, {"tribe": tree.nodes["family"]}).write(path)
    picture = tmp_path / "a.png"
    Image.effect_noise((50, 40), 80).convert("RGB").save(picture)
    words = [str(tmp_path / "runs/tiny"), str(picture), f"data.taxonomy={path}"]
    capsys.readouterr()
    assert main.run(["predict", *words]) == 0
    kept = tmp_path / "runs/tiny/taxonomy.csv"
    assert f"{path}: differs from {kept}, which is taken; `plumage eval` puts it" in capsys.readouterr().err
    few = ["report.gallery=0", "report.pairs=0", "report.explained=1", "report.neighbours=0"]
    assert tiny.do("report", tmp_path, f"data.taxonomy={path}", *few) == 0
    assert said(capsys, *words, "--rank", "tribe")["predictions"][0]["classes"][0]["class"] == "F"
    kept.write_text("class,tribe\n")
    assert main.run(["predict", *words]) == 2
    assert f"{kept}: no row for these classes" in capsys.readouterr().err


def test_training_writes_the_hierarchy_and_learns_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = own_pictures.class_folders(tmp_path / "birds", ["crow", "owl", "rook"])
    (tmp_path / "tree.csv").write_text("class,genus\nrook,Corvus\ncrow,Corvus\nowl,Strix\n")
    key = f"data.taxonomy={tmp_path / 'tree.csv'}"
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    for name, more in (("with", [key]), ("without", [])):
        assert own_pictures.do("train", tmp_path, "folder", birds, f"run.name={name}", *more) == 0
    with_it, without = (RunDirectory(tmp_path / "runs" / name) for name in ("with", "without"))
    assert with_it.taxonomy_file.read_text() == "class,genus\ncrow,Corvus\nowl,Strix\nrook,Corvus\n"
    assert not without.taxonomy_file.exists()
    assert tiny.same_weights(with_it.checkpoint("last"), without.checkpoint("last"))
    (tmp_path / "tree.csv").unlink()
    more = ["run.name=with", "train.resume=auto", "train.epochs=2", "train.resume_force=true"]
    assert own_pictures.do("train", tmp_path, "folder", birds, *more) == 0
    assert with_it.taxonomy_file.exists()
