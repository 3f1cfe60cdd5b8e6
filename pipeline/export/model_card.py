"""README.md of a hub folder: the model card (Mitchell et al. 2019, arXiv:1810.03993), made of what the run knows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.schema import Config
from pipeline.export import numbers
from pipeline.runs.directory import RunDirectory

NUMBERS = {
    "top1": "top-1",
    "top5": "top-5",
    "per_class_mean": "mean accuracy of the classes",
    "nll": "negative log-likelihood, nats",
}
CARD = """\
---
library_name: timm
pipeline_tag: image-classification
license: {licence_tag}
tags: [image-classification, timm, fine-grained]
---

# {name}

`{model}`, fine-tuned to tell {classes} classes apart; {program}, epoch {epoch}.

- **Use**: pictures that show one object of one of the classes, as those of the training. For anything else an answer
  means nothing{unknown}.
- **Weights before the fine-tuning**: {weights}. Licence: {licence}.
- **Data**: source `{source}`, sample table with SHA-256 {samples}. Their licence is not known to the
  program: add it before you publish this.

```python
import timm
model = timm.create_model("local-dir:hub", pretrained=True).eval()
```

The program resizes with OpenCV ({resize} to {resize_px} px, then a centre crop of {image_px} px); timm's own transforms
give somewhat other pixels. `predict.py`, in the folder above, gives the program's to the bit.

## Numbers

{numbers}
{per_class}
## Limits

- Probabilities are {calibrated}.
- The numbers hold for pictures like those of the split; other cameras, places and seasons were not measured.
- Classes: config.json, `label_names`. Checkpoint: SHA-256 {checkpoint}.

## Reproduce

The configuration of the run has SHA-256 {config}; `plumage train --config config.yaml`, then `plumage eval`.
{effort}
"""


def text(config: Config, facts: Mapping[str, Any]) -> str:
    """The model card of a run; facts: the metadata of its export."""
    origin, weights, given = facts["origin"], facts["weights"], facts["preprocessing"]
    licence = weights["licence"]
    known = (
        f'; `predict.py` answers "none of these" below a {facts["unknown"]["score"]} score'
        if facts["unknown"]
        else ""
    )
    temperature = facts["temperature"]
    return CARD.format(
        name=config.run.name,
        model=config.model.name,
        classes=len(facts["classes"]),
        program=facts["program"],
        epoch=origin["epoch"],
        unknown=known,
        weights=weights["source"] + (f", SHA-256 {weights['sha256']}" if weights["sha256"] else ""),
        licence=licence or "not known",
        licence_tag=licence if licence and re.fullmatch(r"[a-z0-9.-]+", licence) else "other",
        source=config.data.source,
        samples=origin["sample_table_sha256"],
        resize=given["resize"],
        resize_px=given["resize_px"],
        image_px=given["image_px"],
        numbers=_numbers(facts["numbers"]),
        per_class=_per_class(config, origin["checkpoint_sha256"]),
        effort=_effort(RunDirectory(config.run_dir)),
        calibrated="not calibrated"
        if temperature is None
        else f"of logits over {temperature:.3f}, fitted on validation",
        checkpoint=origin["checkpoint_sha256"],
        config=origin["config_sha256"],
    )


def _numbers(measured: Sequence[Mapping[str, Any]]) -> str:
    """A table of what was measured, with 95 % intervals."""
    lines = [
        f"| {_split_in_words(entry)} | {entry['n']:,} | {words} | {number['value']:.4f} | {number['low']:.4f} to "
        f"{number['high']:.4f} |"
        for entry in measured
        for name, words in NUMBERS.items()
        if (number := entry.get(name)) is not None
    ]
    head = ["| split | images | number | value | 95 % interval |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else "Not measured: no `plumage eval` of this checkpoint."


def _per_class(config: Config, checkpoint_sha256: str) -> str:
    """A section with a row a class; nothing where nothing was evaluated."""
    found = numbers.per_class(config, checkpoint_sha256)
    if found is None:
        return ""
    split, table = found
    rows = [
        f"| {_cell(row['class_name'])} | {row['n']:,} | {row['accuracy']:.3f} | {row['accuracy_low']:.3f} to "
        f"{row['accuracy_high']:.3f} |"
        for row in table[table["n"] > 0].to_dict("records")
    ]
    head = [
        f"\n## Classes\n\nOf {split}:\n",
        "| class | images | right | 95 % interval |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _cell(text: str) -> str:
    """A name in a cell of a table, as it is."""
    return re.sub(r"([\\|`*_<\[])", r"\\\1", text)


def _effort(run: RunDirectory) -> str:
    """How long the training took, on what; nothing where the run does not say."""
    about = run.read_environment()
    clocked = [one for one in run.read_log(steps=False) if one.get("seconds")] if about else []
    if not clocked:
        return ""
    device = about.get("cpu") or about.get("device") or "a device that is not known"
    return f"The training took {clocked[-1]['seconds']:,.0f} s in {about.get('precision')} on {device}."


def _split_in_words(entry: Mapping[str, Any]) -> str:
    labels = "" if entry["labels"] is None else f", labels of {entry['labels']}"
    protocol = "" if entry["protocol"] is None else f" ({entry['protocol']})"
    return f"{entry['split']}{labels}{protocol}"
