"""The certificate of a run: RUN/certificate.json, the same to read as RUN/certificate.txt, and on the screen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.common import console, files
from pipeline.protocol.claims import Claim
from pipeline.runs.directory import RunDirectory

SCHEMA, VERSION = "plumage/certificate", 1


def write(run: RunDirectory, claims: Sequence[Claim], here: Mapping[str, Any]) -> dict[str, Any]:
    """Write the certificate and show it.

    Args:
        here: the environment in which the claims were looked at (`runs.environment.describe`).

    Returns:
        run; holds: whether no claim fails; fails, not_checked: what these claims are about; certificate: the file.
    """
    counts = Counter(claim.result for claim in claims)
    content = {
        "schema": SCHEMA,
        "version": VERSION,
        "holds": not counts["fails"],
        "claims": [asdict(claim) for claim in claims],
        "metrics_sha256": _digests(run),
        "environment": dict(here),
    }
    files.write_json(run.certificate_file, content)
    lines = list(_lines(run, claims, here))
    files.write_text(run.certificate_text, "\n".join(lines) + "\n")
    for line in lines:
        console.say(line)
    return {
        "run": str(run.path),
        "holds": content["holds"],
        "fails": [claim.about for claim in claims if claim.result == "fails"],
        "not_checked": [claim.about for claim in claims if claim.result == "not checked"],
        "certificate": str(run.certificate_file),
    }


def _digests(run: RunDirectory) -> dict[str, str]:
    """The SHA-256 of each metrics.json that the certificate is of, by split."""
    found = {split: run.evaluation(split).metrics_file for split in ("train", "val", "test")}
    return {split: files.digest_of_file(path) for split, path in found.items() if path.is_file()}


def _lines(run: RunDirectory, claims: Sequence[Claim], here: Mapping[str, Any]) -> list[str]:
    counts = Counter(claim.result for claim in claims)
    verdict = f"{counts['fails']} claims fail" if counts["fails"] else "every claim that was checked holds"
    if counts["fails"] == 1:
        verdict = "1 claim fails"
    machine = here["cpu"] if here["cuda"] is None else here["device"]
    versions = ", ".join(f"{name} {here['packages'][name]}" for name in ("torch", "plumage"))
    head = [
        f"certificate of {run.path.resolve().name}, {here['time']}: {verdict}; {counts['holds']} hold, "
        f"{counts['not checked']} could not be checked",
        f"on {machine}, {versions}",
    ]
    return [
        *head,
        *(f"  {claim.result:<12}{claim.about}: {found}" for claim in claims for found in claim.found),
    ]
