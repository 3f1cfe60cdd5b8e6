"""Whatever timm stumbles over because of a user's options is one sentence; bugs and the machine's errors are not."""

from typing import Any

import pytest
import torch

from pipeline.cli.main import run
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.option_errors import QUOTED_AT_MOST, option_errors

VIT = "vit_tiny_patch16_224"
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("resnet18", {"cardinality": 3}, "AssertionError: BasicBlock only supports cardinality of 1"),
    ("resnet18", {"block": 1}, "AttributeError"),
    ("resnet18", {"act_layer": "foo"}, "KeyError: 'foo'"),
    ("resnet18", {"output_stride": 7}, "AssertionError"),
    ("resnet18", {"nonsense": 7}, "TypeError"),
    (VIT, {"patch_size": 0}, "ZeroDivisionError"),
    (VIT, {"img_size": 0}, "ValueError: Expected a positive image size"),
    (VIT, {"embed_dim": -1}, "RuntimeError: Trying to create tensor with negative dimension"),
    (VIT, {"num_heads": 5}, "AssertionError: dim should be divisible by num_heads"),
]


@pytest.mark.parametrize(("name", "options", "quoted"), WRONG)
def test_options_that_timm_stumbles_over_are_named_with_what_it_said(
    name: str, options: dict[str, Any], quoted: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        build_model(ModelConfig(name=name, pretrained=False, options=options), 5)
    assert str(raised.value).startswith(f"model.options: {name} does not take {options} (")
    assert quoted in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_path_as_the_name_of_a_model_is_no_model_of_timm() -> None:
    with pytest.raises(ConfigError, match=r"^model.name: timm has no model '../x'; timm.list_models\(\)"):
        build_model(ModelConfig(name="../x", pretrained=False), 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.image_px=448"], "Input height (448) doesn't match model (224)"),
        (["data.image_px=448"], "set data.image_px to its own 224, or try model.options={img_size: 448}"),
        (["model.options={patch_size: 0}"], "model.options: vit_tiny_patch16_224 does not take"),
    ],
)
def test_summary_says_what_a_model_cannot_compute(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run(["summary", f"model.name={VIT}", "data.resize_px=512", *words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("error:")) == ("", 1)
    assert sentence in said.err


def test_sentences_of_ours_the_machines_errors_and_lost_ranks_stay_what_they_are() -> None:
    errors = [
        DataError("a picture is damaged; mend it"),
        OSError("the disk is full"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
    ]
    for error in errors:
        with pytest.raises(type(error)) as raised, option_errors("where", "advice"):
            raise error
        assert raised.value is error


def test_a_message_is_quoted_in_one_line_and_not_without_end() -> None:
    with pytest.raises(ConfigError) as raised, option_errors("optim.options", "take others"):
        raise ValueError("two\n  lines " + 1000 * "x")
    said = str(raised.value)
    assert said.startswith("optim.options (ValueError: two lines xxx")
    assert said.endswith("x ...); take others")
    assert len(said) < QUOTED_AT_MOST + 60
