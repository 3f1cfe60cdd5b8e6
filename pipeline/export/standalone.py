"""Name the classes of pictures with model.onnx. `pip install -r requirements.txt` brings what that takes.

python predict.py one.jpg more/*.jpg --top 3   a line of JSON a picture; exit code 2 where one cannot be read
python predict.py --check                      whether the pictures of golden/ have the logits of the trained model
python predict.py one.jpg --model NAME         with a smaller form of it, such as model.fp16.onnx, where one was written
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import onnxruntime
from PIL import Image, UnidentifiedImageError

TURNS = dict(
    zip(range(2, 9), (Image.Transpose(turn) for turn in (0, 3, 1, 5, 4, 6, 2)), strict=True)
)  # by EXIF
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
cv2.setNumThreads(0)  # as in training


class Exported:
    """A model of a folder with what is known of it. facts: its metadata; golden_file: what it is verified by."""

    def __init__(self, folder: Path, model: str = "model.onnx") -> None:
        self.session = onnxruntime.InferenceSession(folder / model, providers=["CPUExecutionProvider"])
        self.golden_file = f"golden{Path(model).stem.removeprefix('model')}.json"
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.facts: dict[str, Any] = {name: json.loads(text) for name, text in metadata.items()}

    def outputs(self, crop: Any) -> dict[str, Any]:
        """By name, for a crop: logits [C], probabilities [C] and perhaps the score of how well it is known."""
        names = [output.name for output in self.session.get_outputs()]
        images = np.ascontiguousarray(crop.transpose(2, 0, 1)[None])
        return {name: a[0] for name, a in zip(names, self.session.run(None, {"images": images}), strict=True)}

    def answer(self, path: Path, top: int) -> dict[str, Any]:
        """What the model says of a picture."""
        found = self.outputs(crop_of(path, self.facts["preprocessing"]))
        return {"image": str(path), **self.named(found, top)}

    def named(self, found: dict[str, Any], top: int) -> dict[str, Any]:
        """The most likely classes of a picture, and what else the run knows to say of it; found: its outputs."""
        classes, unknown = self.facts["classes"], self.facts["unknown"]
        rule = self.facts.get("prediction_set")
        order = np.argsort(-found["logits"], kind="stable")
        said: dict[str, Any] = {
            "classes": [
                {"class": classes[n], "probability": float(found["probabilities"][n])} for n in order[:top]
            ]
        }
        if unknown is not None:
            said["none_of_these"] = bool(found["known_score"] < unknown["lowest_score"])
        if rule is not None:  # they hold for probabilities without the temperature
            share = np.exp(found["logits"].astype(np.float64) - found["logits"].max())
            inside = share / share.sum() >= 1 - rule["threshold"]
            said["prediction_set"] = [classes[n] for place, n in enumerate(order) if place == 0 or inside[n]]
        return said

    def differences(self, folder: Path) -> list[str]:
        """What differs between this machine's outputs for the pictures of golden/ and those that are written there."""
        golden, said = json.loads((folder / self.golden_file).read_text(encoding="utf-8")), []
        for expected in golden["pictures"]:
            crop = crop_of(folder / expected["file"], self.facts["preprocessing"])
            logits, wanted = self.outputs(crop)["logits"], np.array(expected["logits"])
            largest, (next_best, best) = abs(wanted).max(), np.sort(wanted)[-2:]
            difference, tolerance = abs(logits - wanted).max() / largest, golden["tolerance"]
            if hashlib.sha256(crop.tobytes()).hexdigest() != expected["crop_sha256"]:
                said.append(f"{expected['file']}: different pixels; install the versions in requirements.txt")
            if logits.argmax() != wanted.argmax() and best - next_best > tolerance * largest:
                said.append(f"{expected['file']}: label {logits.argmax()} instead of {wanted.argmax()}")
            if not difference <= tolerance:
                said.append(f"{expected['file']}: logits differ by {difference:.1e} of the largest")
        return said


def crop_of(path: Path, given: dict[str, Any]) -> Any:
    """What the model sees of a picture: uint8 [P, P, 3], RGB, the same bits as in training's evaluation.

    given: `preprocessing` of the metadata.
    """
    with path.open("rb") as stream:
        if is_heif(stream.peek(64)):
            raise ValueError("HEIC, which this script does not read; save it as JPEG")
        return crop_of_stream(stream, given)


def crop_of_stream(stream: BinaryIO, given: dict[str, Any]) -> Any:
    """As `crop_of`, of a picture that is open."""
    with Image.open(stream, formats=given["formats"]) as image:
        if max(image.size) > given["most_elongated"] * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels are too elongated")
        if image.format not in ("JPEG", "MPO"):
            image.load()  # the orientation may stand behind the pixels
        orientation = image.getexif().get(0x0112, 1)
        swaps = orientation in (5, 6, 7, 8)
        width, height = stored_size(image.size[::-1] if swaps else image.size, given)
        if image.mode != "L":  # libjpeg scales while it decodes
            image.draft("RGB", (height, width) if swaps else (width, height))
        shown = as_rgb(image, given)
        pixels = np.asarray(shown.transpose(TURNS[orientation]) if orientation in TURNS else shown)
    pixels = np.pad(as_stored(pixels, width, height, given), [(given["pad_px"],) * 2] * 2 + [(0, 0)])
    top, left = ((side - given["image_px"]) // 2 for side in pixels.shape[:2])
    return pixels[top : top + given["image_px"], left : left + given["image_px"]]


def is_heif(head: bytes) -> bool:
    """Whether a file begins as one of a phone, with pictures of HEVC: by its brands, of which AVIF has others."""
    brands = {head[at : at + 4] for at in range(8, min(len(head), 64), 4)}
    return head[4:8] == b"ftyp" and bool(brands & HEIF_BRANDS) and not brands & {b"avif", b"avis"}


def as_rgb(image: Image.Image, given: dict[str, Any]) -> Image.Image:
    """The picture in mode RGB, on the background where it is transparent; 16 bits of grey keep their upper 8."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I") and "transparency" not in image.info:
        values, bits = np.asarray(image), getattr(image, "tag_v2", {}).get(258)
        if values.min() < 0 or not given["darkest_16_bit"] <= values.max() < 2**16 or bits == (12,):
            raise ValueError(f"grey values {values.min()}..{values.max()}; save it with 8 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    transparency = image.info.get("transparency")
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV") or (
        isinstance(transparency, tuple) and max(transparency) > 255
    ):
        raise ValueError(
            f"pixels of Pillow's mode {image.mode}, which this script does not convert; save it as RGB"
        )
    if transparency is None and image.mode[-1] not in "Aa" and not palette.endswith("A"):
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, (*given["background"], 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def stored_size(size: tuple[int, ...], given: dict[str, Any]) -> tuple[int, int]:
    """Width and height to which a picture of a width and height is resized, px."""
    side, scale = given["resize_px"], given["resize_px"] / min(size)
    if given["resize"] == "squash":
        return side, side
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def as_stored(pixels: Any, width: int, height: int, given: dict[str, Any]) -> Any:
    """Resized: area averages where it shrinks, then bicubic where it grows; of a store of JPEGs as it gives it back."""
    rows, columns = pixels.shape[:2]
    if columns > width or rows > height:
        pixels = cv2.resize(pixels, (min(columns, width), min(rows, height)), interpolation=cv2.INTER_AREA)
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    if given["jpeg_quality"] is None:
        return pixels
    bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, given["jpeg_quality"]])
    return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)


def main() -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--top", type=int, default=5, help="number of classes of a picture; default: 5")
    parser.add_argument("--check", action="store_true", help="verify the pictures of golden/")
    folder = Path(__file__).parent
    names = sorted(path.name for path in folder.glob("model*.onnx"))
    parser.add_argument("--model", choices=names, default="model.onnx", help="default: model.onnx")
    wanted = parser.parse_intermixed_args()
    if not wanted.check and not wanted.pictures:
        parser.error("no picture is given; name some, or give --check")
    model, failed = Exported(folder, wanted.model), 0
    if wanted.check:
        differences = model.differences(folder / "golden")
        for line in differences or [
            f"every picture of golden/ has the label and the logits of {model.golden_file}"
        ]:
            print(line, file=sys.stderr if differences else sys.stdout)
        failed += len(differences)
    for path in wanted.pictures:
        try:
            answer = model.answer(path, wanted.top)
        except Exception as error:  # Pillow raises some twenty kinds for bad pictures; the line says which
            answer = {"image": str(path), "error": _reason(error)}
            failed += 1
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    return 2 if failed else 0


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
