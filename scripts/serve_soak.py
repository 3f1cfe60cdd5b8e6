"""Ask a server of an export thousands of pictures at saturation, and compare every answer with that of predict.py.

    python scripts/serve_soak.py EXPORT PICTURES... [--requests 10000] [--clients 16] [--threads N]

PICTURES are files, or folders of JPEGs. Printed as JSON: wrong answers, times of answers, pictures a second, the memory
of the server at its start, after a fifth and at its end, and the load of the machine. Exit code 1 where an answer is
wrong, or the server does not end as it should.
"""

import argparse
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.export.standalone import Exported  # noqa: E402

TOP, RETRIES_S, WAIT_S = 5, 0.05, 120.0
BOUNDARY = "plumage-soak"


def body_of(path: Path) -> bytes:
    """A form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


class Soak:
    """Clients that share a list of pictures, and what they have seen."""

    def __init__(
        self, port: int, pictures: Sequence[Path], wanted: Sequence[dict[str, Any]], requests: int
    ) -> None:
        """wanted: the answer for each picture."""
        self._port, self._wanted = port, wanted
        self._bodies = [body_of(path) for path in pictures]
        self._numbers = iter(range(requests))
        self._lock = threading.Lock()
        self.ms: list[float] = []
        self.wrong: list[str] = []
        self.busy = self.cut = 0
        self.rss: dict[str, int] = {}

    def run(self, clients: int, fifth: int) -> float:
        """Ask all; the seconds that it took. fifth: number of answers after which the memory is read once."""
        started = time.monotonic()
        self.rss["start"] = self.memory()
        threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while len(self.ms) < fifth and any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
        self.rss[f"after {fifth:,}"] = self.memory()
        for thread in threads:
            thread.join()
        self.rss["end"] = self.memory()
        return time.monotonic() - started

    def memory(self) -> int:
        """Resident bytes of the server, as /metrics says."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        [line] = [line for line in lines if line.startswith("process_resident_memory_bytes ")]
        return int(float(line.split()[1]))

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                break
            place = number % len(self._bodies)
            while not self._answered(connection, place, headers):
                time.sleep(RETRIES_S)
        connection.close()

    def _answered(self, connection: http.client.HTTPConnection, place: int, headers: dict[str, str]) -> bool:
        """Ask once; whether there is an answer, and not only the wish to be asked again."""
        started = time.perf_counter()
        try:
            connection.request("POST", f"/predict?top={TOP}", self._bodies[place], headers)
            response = connection.getresponse()
            text = response.read()
        except (http.client.HTTPException, OSError):
            connection.close()
            self.cut += 1
            if self.cut > 100:
                raise
            return False
        if response.status == 503:
            self.busy += 1
            return False
        with self._lock:
            self.ms.append((time.perf_counter() - started) * 1000)
            if response.status != 200 or json.loads(text)["pictures"] != [self._wanted[place]]:
                self.wrong.append(text.decode())
        return True


def pictures_of(paths: Sequence[Path]) -> list[Path]:
    """The files, and the JPEGs of the folders."""
    return list(
        itertools.chain.from_iterable(
            sorted(path.rglob("*.jpg")) if path.is_dir() else [path] for path in paths
        )
    )


def main() -> int:
    """Ask, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    pictures, model = pictures_of(asked.pictures), Exported(asked.export)
    wanted = [{**model.answer(path, TOP), "image": path.name} for path in pictures]
    words = [sys.executable, "-m", "pipeline", "serve", str(asked.export.resolve()), "--port", "0"]
    words += ["--threads", str(asked.threads)] if asked.threads else []
    server = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stderr is not None
    first = json.loads(server.stderr.readline())
    threading.Thread(target=server.stderr.read, daemon=True).start()  # its log
    soak = Soak(int(first["url"].rpartition(":")[2]), pictures, wanted, asked.requests)
    try:
        seconds = soak.run(asked.clients, asked.requests // 5)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(WAIT_S)
    print(
        json.dumps(
            {
                "pictures": len(pictures),
                "requests": len(soak.ms),
                "clients": asked.clients,
                "threads": first["threads"],
                "wrong_answers": len(soak.wrong),
                "cut_connections": soak.cut,
                "busy_answers": soak.busy,
                "p50_ms": round(float(np.percentile(soak.ms, 50)), 1),
                "p99_ms": round(float(np.percentile(soak.ms, 99)), 1),
                "pictures_per_s": round(len(soak.ms) / seconds, 1),
                "rss_mib": {when: round(size / 2**20) for when, size in soak.rss.items()},
                "load": [round(one, 1) for one in os.getloadavg()],
                "cores": os.cpu_count(),
                "exit_code": code,
            }
        )
    )
    return 1 if soak.wrong or soak.cut or code or len(soak.ms) != asked.requests else 0


if __name__ == "__main__":
    sys.exit(main())
