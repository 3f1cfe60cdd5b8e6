"""The verb that serves a model over HTTP."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable

from pipeline.cli.verbs.verb import Result, Verb, importing, paths_and_overrides
from pipeline.common.errors import ConfigError, DataError

PACKAGES = "fastapi", "uvicorn", "python_multipart", "prometheus_client", "onnxruntime"
MIB = 2**20
MEGAPIXEL = 1_000_000
# Option, its type, default, lowest and highest value, and what it is a number of.
NUMBERS: tuple[tuple[str, Callable[[str], float], float | None, float, float, str], ...] = (
    ("threads", int, None, 1, 1024, "threads for decoding, and as many for computing; default: one per core"),
    ("batch", int, 8, 1, 256, "pictures per pass of the model; default: %(default)s"),
    ("max-mib", float, 32, 0.001, 4096, "size of a request in MiB; default: %(default)s"),
    ("max-megapixels", float, 50, 0.01, 170, "size of a picture in megapixels; default: %(default)s"),
    (
        "max-decoding-megapixels",
        float,
        100,
        0.01,
        1e6,
        "megapixels decoded at one time; others wait, a larger picture is decoded alone; default: %(default)s",
    ),
    ("max-files", int, 16, 1, 1000, "pictures per request; default: %(default)s"),
    ("max-requests", int, 64, 1, 10_000, "requests at a time; default: %(default)s"),
    ("max-pictures", int, 128, 1, 100_000, "pictures at a time, over all requests; default: %(default)s"),
    ("seconds", float, 30, 0.1, 3600, "seconds per request, including its upload; default: %(default)s"),
    (
        "drain-seconds",
        float,
        0,
        0,
        3600,
        "seconds that new connections are still accepted after a signal; default: %(default)s",
    ),
)


def _number(kind: Callable[[str], float], lowest: float, highest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise ArgumentTypeError(f"{text}: not a number from {lowest:g} to {highest:g}")
        return value

    return parse


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN|EXPORT",
        help="a run directory that was exported, such as runs/NAME, or an export folder",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument(
        "--port", type=_number(int, 0, 65535), default=8000, help="port; 0: a free one; default: %(default)s"
    )
    parser.add_argument(
        "--model",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="form of the exported model; default: %(default)s",
    )
    parser.add_argument(
        "--open-metrics",
        action="store_true",
        help="serve /metrics without the token; it names the run but no pictures",
    )
    numbers = parser.add_argument_group("limits: anything beyond them is refused")
    for name, kind, default, lowest, highest, words in NUMBERS:
        numbers.add_argument(
            f"--{name}", type=_number(kind, lowest, highest), default=default, metavar="N", help=words
        )


def serve(arguments: Namespace) -> Result:
    """Serve an exported model over HTTP.

    It serves POST /predict, /model and /metrics. The model, from `plumage export`, has to reproduce golden/ at the
    start, or it is not served. After SIGTERM, the requests in progress are answered first.
    """
    from importlib.util import find_spec

    paths, overrides = paths_and_overrides(arguments.positionals)
    if len(paths) != 1 or overrides:
        raise DataError(
            f"serve: {' '.join(arguments.positionals)!r} is not one run or export; name one such as runs/NAME"
        )
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"serve: needs the packages {', '.join(missing)}; install them from Plumage's folder: "
            ".venv/bin/pip install --editable '.[serve]'"
        )
    with importing():
        from pipeline.serving.limits import Limits
        from pipeline.serving.serve import ServerOptions
        from pipeline.serving.serve import serve as serve_until_stopped

    limits = Limits(
        request_bytes=round(arguments.max_mib * MIB),
        pixels=round(arguments.max_megapixels * MEGAPIXEL),
        decoding_pixels=round(arguments.max_decoding_megapixels * MEGAPIXEL),
        files=arguments.max_files,
        seconds=arguments.seconds,
        requests=arguments.max_requests,
        pictures=arguments.max_pictures,
        batch=arguments.batch,
    )
    options = ServerOptions(
        *(arguments.host, arguments.port, arguments.threads, arguments.drain_seconds),
        *(arguments.model, limits, arguments.open_metrics),
    )
    return serve_until_stopped(paths[0], options)


VERBS = {
    "serve": Verb(
        serve,
        _arguments,
        ("plumage serve runs/low_lr", "plumage serve runs/low_lr/export --port 8080 --threads 4"),
    ),
}
