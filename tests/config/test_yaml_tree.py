"""No YAML text costs more than a sentence: tags, cycles, depth, sizes, characters that are none."""

from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.config.yaml_tree import MOST_BYTES, MOST_DEPTH, MOST_VALUES, BeyondLimits, NotYaml, Plain, parse
from pipeline.experiments.studies.plan import StudyPlan
from pipeline.experiments.sweeps.plan import load_plans

DOUBLING = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 25))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500))
HOSTILE = {
    "a tag of Python": (
        "a: !!python/object/apply:os.system [ls]",
        "the tag !!python/object/apply:os.system is not",
    ),
    "a tag of one's own": (
        "a: !birds 3",
        "the tag !birds is not allowed; write the value as text, number, list",
    ),
    "bytes": ("a: !!binary aGk=", "the tag !!binary is not allowed; write the value as text"),
    "bytes as a key": ("? !!binary aGk=\n: 1", "the tag !!binary is not allowed; write the value as text"),
    "a set": ("a: !!set {b, c}", "the tag !!set is not allowed"),
    "no key": ("~: 1", "a key is null; write each key as text"),
    "a list in itself": ("a: &a [*a]", r"the alias \*a stands within what it repeats"),
    "keys in themselves": ("a: &a {b: {c: *a}}", r"the alias \*a stands within what it repeats"),
    "aliases that double": (DOUBLING, "more than 10,000 values, too many for a configuration"),
    "aliases that deepen": (CHAIN, "nested deeper than 32 levels, too deep for a configuration"),
    "deep lists": ("a: " + "[" * 3000 + "]" * 3000, "nested deeper than 32 levels"),
    "deep keys": ("a: " + "{b: " * 3000 + "}" * 3000, "nested deeper than 32 levels"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(400)), "nested deeper than 32 levels"),
    "many values": ("a: [" + "1, " * 20_000 + "]", "more than 10,000 values"),
    "a large file": ("# " + "x" * 300_000, "more than 262,144 bytes, too many for a configuration"),
    "half a character": ('a: "\\ud800"', r"the character '\\ud800' is not allowed in text"),
    "half a character in a key": ('"\\ud800": 1', r"the character '\\ud800' is not allowed in text"),
    "NUL": ('a: "\\0"', r"the character '\\x00' is not allowed in text"),
    "escape": ('a: "\\e[31m"', r"the character '\\x1b' is not allowed in text"),
}
NOT_YAML = {
    "no int": "a: !!int abc",
    "no float": "a: !!float abc",
    "no bool": "a: !!bool maybe",
    "no list": "a: !!seq {b: c}",
    "many digits": "a: " + "9" * 5000,
    "undefined alias": "a: *b",
    "two documents": "a: 1\n---\nb: 1",
    "a raw NUL": "a: \0",
    "another version": "%YAML 9.9\n---\na: 1",
    "keys alike": "1: a\n'1': b",
}


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_configuration_is_made_of_is_refused(case: str, version: str) -> None:
    text, sentence = HOSTILE[case]
    with pytest.raises(BeyondLimits, match=sentence):
        parse(text, version)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize("case", NOT_YAML)
def test_what_is_no_yaml_is_said_on_one_line(case: str, version: str) -> None:
    with pytest.raises(NotYaml) as caught:
        parse(NOT_YAML[case], version)  # type: ignore[arg-type]
    assert not isinstance(caught.value, BeyondLimits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", HOSTILE | NOT_YAML)
def test_every_file_that_is_yaml_is_read_so(case: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(HOSTILE[case][0] if case in HOSTILE else NOT_YAML[case])
    for read in (load_config, StudyPlan, lambda path: load_plans(path, ())):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("case", HOSTILE)
def test_an_override_has_the_same_limits(case: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.options: ") as caught:
        load_config(None, [f"model.options={HOSTILE[case][0]}"])
    assert "\n" not in str(caught.value)


def test_what_is_within_the_limits_is_read() -> None:
    assert parse("a: &a {b: 1, c: 'x'}\nd: {<<: *a, b: 2.50}\ne: *a\n") == {
        "a": {"b": Plain(1, "1"), "c": "x"},
        "d": {"b": Plain(2.5, "2.50"), "c": "x"},
        "e": {"b": Plain(1, "1"), "c": "x"},
    }
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert str(parse(deep)) == deep
    assert len(parse("[" + "x," * (MOST_VALUES - 1) + "]")) == MOST_VALUES - 1
    assert parse("#" * MOST_BYTES) is None


def test_aliases_share_nothing() -> None:
    tree = parse("a: &a {b: 1}\nc: *a\n")
    tree["a"]["b"] = 2
    assert tree["c"] == {"b": Plain(1, "1")}


def test_a_device_has_no_end_and_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero: more than 262,144 bytes"):
        load_config(Path("/dev/zero"))


def test_a_path_with_nul_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="not readable as YAML: embedded null byte"):
        load_config(Path("a\0b.yaml"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tracking.notes=\ud800", r"tracking.notes: the character '\\ud800' is not allowed in text"),
        ("tracking.notes=\x1b[31m", r"tracking.notes: the character '\\x1b' is not allowed in text"),
        ("tracking.\ud800=1", "not an override"),
        ("a\nb=1", "not an override"),
        (".".join("a" * 5000) + "=1", "unknown key; no key has more than 32 parts"),
        ("optim.phases.²=1", "optim.phases"),
        (
            "optim.lr=" + "x" * 9999,
            r'^overrides: optim\.lr: "x{99}\.\.\. is not allowed; allowed: a number above 0$',
        ),
    ],
)
def test_an_override_with_odd_characters_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(None, ["optim.phases=[]", override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["9" * 5000, "!!int abc", "{a: !!bool maybe}"])
def test_a_number_that_is_none_is_not_allowed_as_any_other_text(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^overrides: optim\.lr: .* is not allowed; allowed: a number above 0$"
    ):
        load_config(None, [f"optim.lr={value}"])
