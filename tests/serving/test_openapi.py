"""The server does what its OpenAPI says, by what Schemathesis makes of it."""

import os
import sys
from pathlib import Path

import httpx
import pytest

from tests.helpers import tiny
from tests.helpers.serving import HeldModel, running, small_export

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("token", [None, pytest.param(TOKEN, marks=pytest.mark.slow)])
def test_schemathesis_finds_no_answer_that_is_not_described(token: str | None, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.helpers.schemathesis_hooks",
    }
    words = [str(Path(sys.executable).with_name("schemathesis")), "run", "--max-examples=10", "--seed=1"]
    words += ["--no-color", "--header", f"Authorization: Bearer {token}"] if token else ["--no-color"]
    with running(HeldModel(small_export(tmp_path / "small")), token=token) as server:
        done = tiny.launch([*words, f"{server.url}/openapi.json"], env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 selected / 6 total" in done.stdout


def test_openapi_has_examples_and_says_where_a_token_is_asked_for(tmp_path: Path) -> None:
    model = HeldModel(small_export(tmp_path / "small"))
    with running(model, token=TOKEN) as server:
        headers = {"authorization": f"Bearer {TOKEN}"}
        said = httpx.get(f"{server.url}/openapi.json", headers=headers).json()
    predict = said["paths"]["/predict"]["post"]
    example = predict["responses"]["200"]["content"]["application/json"]["example"]
    assert example["pictures"][0]["classes"][0].keys() == {"class", "probability"}
    assert {"400", "401", "408", "413", "415", "422", "503"} < predict["responses"].keys()
    assert "example" in predict["responses"]["503"]["content"]["application/json"]
    locked = {path for path, verbs in said["paths"].items() for verb in verbs.values() if "security" in verb}
    assert locked == {"/predict", "/model", "/metrics"}
    with running(model) as server:
        assert "security" not in httpx.get(f"{server.url}/openapi.json").text
