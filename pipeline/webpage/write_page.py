"""The verb `page`: RUN/export/page.html, or RUN/export/page/, which names the classes of pictures by itself."""

from pathlib import Path
from typing import Any

from pipeline.common import console, files
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.runs.directory import RunDirectory
from pipeline.webpage import folder_page, page, runtime_files
from pipeline.webpage.companions import companions
from pipeline.webpage.page import FORMS, Form

MOST_BYTES = 20_000_000
EXACT: tuple[Form, ...] = "fp32", "fp16"
"""forms that compute in fp32; the kernels of int8 round differently in a browser, by some percent of a logit"""


def write_page(config: Config, form: Form | None, *, pictures: bool, as_folder: bool) -> dict[str, Any]:
    """Write the page, and what it shows beside an answer as page.json; in plain types, where and how large.

    Args:
        form: of the model; None: the smaller of those whose logits are the trained model's in every browser.
        pictures: show some of the data's pictures.
        as_folder: RUN/export/page/, for a web server; else RUN/export/page.html.

    Raises:
        DataError: the run is not exported, or not in that form, or of JPEGs; or onnxruntime-web cannot be had.
    """
    folder = RunDirectory(config.run_dir).export
    form = _form(config.run_dir, folder, form)
    facts = page.facts_of(folder)
    if facts["preprocessing"].get("jpeg_quality") is not None:
        raise DataError(
            f"{config.run_dir}: was trained with data.store=jpeg, whose JPEGs a page cannot write as OpenCV does; use "
            "`plumage serve`"
        )
    engine = runtime_files.engine()
    beside = companions(config, folder, facts, pictures=pictures)
    files.write_json(folder / page.COMPANIONS, beside)
    if as_folder:
        path, then = folder / "page", "put it on a web server, with https"
        size_bytes = folder_page.write(path, folder, form, engine)
    else:
        path, then = folder / "page.html", "open it in a browser"
        files.write_text(path, page.offline_page(folder, form, engine))
        size_bytes = path.stat().st_size
    console.say(f"page  {path}: {files.size_in_words(size_bytes)}, with the model in {form}; {then}")
    if size_bytes > MOST_BYTES:
        smaller = (
            f"`plumage export {config.run_dir} --fp16`"
            if form == "fp32"
            else "a smaller network (model.name)"
        )
        console.warn(f"{path}: phones open so large a file slowly; {smaller} makes it smaller")
    return {"page": str(path), "size_bytes": size_bytes, "form": form, "pictures": bool(beside["pictures"])}


def _form(run: Path, folder: Path, wanted: Form | None) -> Form:
    """The form of the model that the page takes: it is there, with its golden logits."""
    sizes: dict[Form, int] = {
        form: (folder / model).stat().st_size
        for form, (model, golden) in FORMS.items()
        if (folder / model).is_file() and (folder / "golden" / golden).is_file()
    }
    if "fp32" not in sizes:
        raise DataError(f"{run}: is not exported yet; run `plumage export {run}` first")
    if wanted is None:
        return min((form for form in sizes if form in EXACT), key=sizes.__getitem__)
    if wanted not in sizes:
        raise DataError(
            f"{folder / FORMS[wanted][0]}: missing; run `plumage export {run} --{wanted}`, which writes it if it "
            f"passes, or choose from {', '.join(sizes)}"
        )
    return wanted
