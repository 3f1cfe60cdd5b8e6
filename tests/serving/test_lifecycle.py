"""A server starts only with a model that proves itself, and ends without a lost or a half answer."""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from pipeline.cli.main import run
from pipeline.common import files
from pipeline.serving.served_model import ServedModel
from tests.helpers import tiny
from tests.helpers.serving import (
    WAIT_S,
    HeldModel,
    Process,
    expected,
    picture,
    running,
    sent,
    small_export,
)

CLIENTS, PICTURES = 4, 6


def refused(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence with which the verb ends at once."""
    assert run(["serve", *map(str, words), "--port", "0"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    [sentence] = [line for line in said.err.splitlines() if line.startswith("error: ")]
    return sentence


# Start


def test_a_model_that_does_not_give_goldens_logits_is_not_served(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = small_export(tmp_path / "small")
    other = onnx.load(small_export(tmp_path / "other", seed=1) / "model.onnx")
    [weights] = [one for one in other.graph.initializer if one.name == "weights"]
    model = onnx.load(folder / "model.onnx")
    [place] = [n for n, one in enumerate(model.graph.initializer) if one.name == "weights"]
    model.graph.initializer[place].CopyFrom(weights)
    onnx.save(model, folder / "model.onnx")
    said = refused(capfd, folder)
    assert "does not answer here as the trained model did: 1-plain.jpg: " in said
    assert said.endswith("it is not served")


def test_a_smaller_form_is_served_that_gives_its_own_golden_logits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, smaller = small_export(tmp_path / "small"), small_export(tmp_path / "other", seed=1)
    said = refused(capfd, folder, "--model", "int8")
    assert (
        "model.int8.onnx: missing; export the run with --int8, which writes it if it passes, or serve fp32"
        in said
    )
    shutil.copy(smaller / "model.onnx", folder / "model.int8.onnx")
    assert "has no golden/golden.int8.json" in refused(capfd, folder, "--model", "int8")
    shutil.copy(folder / "golden/golden.json", folder / "golden/golden.int8.json")
    assert "does not answer here as the trained model did" in refused(capfd, folder, "--model", "int8")
    shutil.copy(smaller / "golden/golden.json", folder / "golden/golden.int8.json")
    crop = np.zeros((3, 32, 32), np.uint8)
    crop[:, :16] = 200
    served = ServedModel(folder, 2, "int8")
    assert served.sha256 == files.digest_of_file(folder / "model.int8.onnx")
    (found,), (wanted,) = (one.batch_outputs([crop]) for one in (served, ServedModel(smaller, 2)))
    np.testing.assert_array_equal(found["logits"], wanted["logits"])
    assert found["logits"].argmax() != ServedModel(folder, 2).batch_outputs([crop])[0]["logits"].argmax()


def test_a_damaged_export_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = small_export(tmp_path / "small")
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in refused(capfd, folder)
    model = onnx.load_model_from_string(whole)
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")
    assert "says nothing about its classes, origin" in refused(capfd, folder)
    (folder / "model.onnx").write_bytes(whole)
    (folder / "golden/golden.json").rename(tmp_path / "golden.json")
    assert "has no golden/golden.json" in refused(capfd, folder)


def test_what_is_not_exported_is_told_how(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "neither a run directory nor an export" in refused(capfd, tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert f"run `plumage export {tmp_path}` first" in refused(capfd, tmp_path)
    assert "not one run or export" in refused(capfd, tmp_path, tmp_path)


def test_an_address_that_is_taken_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = small_export(tmp_path / "small")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(folder), "--port", str(port)]) == 2
    assert f"127.0.0.1, port {port}: cannot listen there" in capfd.readouterr().err
    assert run(["serve", str(folder), "--host", "no.such.host.invalid"]) == 2
    assert "no.such.host.invalid, port 8000: cannot listen there" in capfd.readouterr().err
    for host in ("x..y", "a" * 64):
        assert run(["serve", str(folder), "--host", host]) == 2
        said = capfd.readouterr().err
        assert f"{host}, port 8000: cannot listen there (not a host name); give another --host" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("token", ["", "short", "0123456789 abcdef", "0123456789abcdeé"])
def test_a_token_that_protects_nothing_is_refused(
    token: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMAGE_SERVE_TOKEN", token)
    assert "PLUMAGE_SERVE_TOKEN: is not a token" in refused(capfd, small_export(tmp_path / "small"))


@pytest.mark.parametrize("words", [["--port", "70000"], ["--threads", "0"], ["--max-mib", "nan"]])
def test_a_wrong_option_is_said(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["serve", "x", *words])
    assert ended.value.code == 2
    assert "not a number from" in capfd.readouterr().err


def test_a_run_that_was_trained_on_since_its_export_is_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small_export(tmp_path / "export").joinpath("golden/golden.json").rename(tmp_path / "golden.json")
    small_export(tmp_path / "run" / "export")
    (tmp_path / "run/config.yaml").write_text("")
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run/checkpoints/best.pt").write_bytes(b"newer")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that the verb ends
        run(["serve", str(tmp_path / "run"), "--port", str(taken.getsockname()[1])])
    assert "was trained further since it was exported" in capfd.readouterr().err


# End


def test_readiness_goes_first_and_what_is_in_hand_is_answered(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "small")
    model = HeldModel(folder)
    with running(model, drain_s=1.5) as server, ThreadPoolExecutor(1) as clients:
        model.may_answer.clear()
        in_hand = clients.submit(httpx.post, f"{server.url}/predict", files=sent(picture(1)), timeout=WAIT_S)
        assert model.asked.wait(WAIT_S)
        server.stop.name = "SIGTERM"
        while (state := httpx.get(f"{server.url}/readyz")).status_code == 200:
            time.sleep(0.01)
        assert (state.status_code, state.json()) == (503, {"status": "ending"})
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        with pytest.raises(httpx.TransportError):
            while True:
                httpx.get(f"{server.url}/readyz")
        assert server.thread.is_alive(), "a request is in hand"
        model.may_answer.set()
        answered = in_hand.result().json()["pictures"][0]
        assert answered == {"image": "a.png", **expected(folder, picture(1), tmp_path)}


class Clients:
    """Threads that ask one picture after the other, as fast as they are answered."""

    def __init__(self, url: Callable[[], str], wanted: dict[str, list[dict[str, Any]]]) -> None:
        """wanted: for each run that may answer, the answers for `picture(n)`."""
        self._url, self._wanted = url, wanted
        self.answered: dict[str, int] = dict.fromkeys(wanted, 0)
        self.wrong: list[str] = []
        self.cut = 0
        self._ended, self._lock = threading.Event(), threading.Lock()

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def wait(self, name: str, more: int) -> None:
        """Until a run has answered so many more."""
        goal, deadline = self.answered[name] + more, time.monotonic() + WAIT_S
        while self.answered[name] < goal:
            assert time.monotonic() < deadline, (self.answered, self.cut, self.wrong)
            time.sleep(0.005)

    def _ask(self, n: int) -> None:
        with httpx.Client(timeout=WAIT_S) as client:
            while not self._ended.is_set():
                n = (n + 1) % PICTURES
                try:
                    got = client.post(f"{self._url()}/predict", files=sent(picture(n)))
                except httpx.TransportError:  # documented: send it again
                    with self._lock:
                        self.cut += 1
                    time.sleep(0.01)
                    continue
                self._check(n, got)

    def _check(self, n: int, got: httpx.Response) -> None:
        with self._lock:
            if got.status_code != 200:
                self.wrong.append(f"{got.status_code} {got.text}")
                return
            said = got.json()
            name = said["model"]["run"]
            self.answered[name] += 1
            if said["pictures"] != [{"image": "a.png", **self._wanted[name][n]}]:
                self.wrong.append(got.text)


def wanted(folder: Path, tmp: Path) -> list[dict[str, Any]]:
    return [expected(folder, picture(n), tmp) for n in range(PICTURES)]


def test_sigterm_under_load_loses_no_request_that_was_counted(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "small")
    with Process(folder) as server:
        clients = Clients(lambda: server.url, {"small-0": wanted(folder, tmp_path)})
        with clients.asking():
            clients.wait("small-0", 30)
            server.popen.send_signal(signal.SIGTERM)
            code, printed = server.end()
    assert code == 0
    totals = json.loads(printed)
    assert totals["stopped_by"] == "SIGTERM"
    assert totals["requests"] == totals["pictures"] == clients.answered["small-0"] >= 30
    assert not clients.wrong
    events = [json.loads(line)["event"] for line in server.lines]
    assert "ending" in events
    assert events.count("request") == totals["requests"]


def test_kill_9_under_load_leaves_no_half_answer(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "small")
    with Process(folder) as server:
        clients = Clients(lambda: server.url, {"small-0": wanted(folder, tmp_path)})
        with clients.asking():
            clients.wait("small-0", 30)
            os.kill(server.popen.pid, signal.SIGKILL)
            assert server.end()[0] == -signal.SIGKILL
    assert clients.cut > 0
    assert not clients.wrong


def test_a_new_version_takes_over_from_an_old_one_without_a_lost_request(tmp_path: Path) -> None:
    folders = {f"small-{seed}": small_export(tmp_path / str(seed), seed) for seed in (0, 1)}
    with ExitStack() as servers:
        old = servers.enter_context(Process(folders["small-0"]))
        address = [old.url]  # what a proxy knows
        answers = {name: wanted(folder, tmp_path) for name, folder in folders.items()}
        clients = Clients(lambda: address[0], answers)
        with clients.asking():
            clients.wait("small-0", 10)
            new = servers.enter_context(Process(folders["small-1"]))
            assert httpx.get(f"{new.url}/readyz").status_code == 200
            clients.wait("small-0", 5)  # both are there
            address[0] = new.url
            clients.wait("small-1", 5)
            old.popen.send_signal(signal.SIGTERM)
            assert old.end()[0] == 0
            clients.wait("small-1", 10)
    assert not clients.wrong
    assert clients.cut == 0


def test_the_verb_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "assert main.run(sys.argv[1:]) == 2\n"
        "assert not {'torch', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
        "assert 'fastapi' in sys.modules"
    )
    done = tiny.launch([sys.executable, "-c", code, "serve", str(tmp_path)])
    assert done.returncode == 0, done.stderr
