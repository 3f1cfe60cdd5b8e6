"""The crops that the page's script makes of files, computed by node."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.webpage.page import PICTURES

NODE = shutil.which("node")
RUNNER = """
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const said = [];
for (const path of given.paths) {
  try {
    const { crop } = await readPicture(new Uint8Array(fs.readFileSync(path)), given.preprocessing);
    said.push({ crop: Buffer.from(crop).toString("base64") });
  } catch (error) {
    said.push({ error: error.message });
  }
}
console.log(JSON.stringify(said));
"""


def crops(paths: Sequence[Path], preprocessing: dict[str, Any]) -> list[dict[str, str]]:
    """Of each file its crop in base64, or the error that it meets."""
    assets = [
        resources.files("pipeline.webpage").joinpath("assets", name).read_text(encoding="utf-8")
        for name in PICTURES
    ]
    script = "\n".join(['import fs from "node:fs";', *assets, RUNNER])
    given = json.dumps({"paths": [str(path) for path in paths], "preprocessing": preprocessing})
    words = [str(NODE), "--input-type=module", "--eval", script]
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=True, timeout=120)
    answers: list[dict[str, str]] = json.loads(done.stdout)
    return answers
