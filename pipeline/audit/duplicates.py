"""Near-duplicates, within and across splits: a perceptual hash proposes them, the model's features confirm them.

The hash (imagehash's pHash of 256 bits: the signs of a picture's lowest frequencies) changes little when a picture
is scaled, compressed again, made brighter, or cropped by a few per cent. A mirrored picture has another hash.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.common import console
from pipeline.common.errors import named
from pipeline.data.corrections import DROP
from pipeline.data.image_store import Store
from pipeline.data.pictures import JPEG_QUALITY, Pixels

HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
MAX_DISTANCE = 48  # of 256 bits; different photographs are some 128 apart
MIN_SIMILARITY = 0.9  # cosine of the features
PICTURE_PX = 256  # height of a pair's picture
CHUNK = 512

Bits = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


def hashes(store: Store) -> Bits:
    """The perceptual hash of every picture of a store: bool [n, 256]."""
    bits = np.empty((len(store), HASH_BITS), np.bool_)
    with console.bar("hashes", len(store)) as bar:
        for row in range(len(store)):
            bits[row] = hash_of(store[row])
            bar.advance()
    return bits


def hash_of(picture: Pixels) -> Bits:
    """The perceptual hash of a picture, uint8 [H, W, 3] RGB: bool [256]."""
    return np.asarray(imagehash.phash(Image.fromarray(picture), HASH_SIDE).hash.ravel(), np.bool_)


def close_pairs(bits: Bits) -> tuple[Rows, Rows]:
    """The pairs of rows, int64 [m] and int64 [m], whose hashes, bool [n, 256], differ in `MAX_DISTANCE` bits at most."""
    signs = bits.astype(np.float32) * 2 - 1
    rows_a: list[Rows] = []
    rows_b: list[Rows] = []
    for start in range(0, len(signs), CHUNK):
        distance = (HASH_BITS - signs[start : start + CHUNK] @ signs[start:].T) / 2
        a, b = (np.triu(distance <= MAX_DISTANCE, k=1)).nonzero()
        rows_a.append(a + start)
        rows_b.append(b + start)
    return np.concatenate(rows_a), np.concatenate(rows_b)


def pairs(samples: pd.DataFrame, bits: Bits, features: npt.NDArray[np.float32]) -> pd.DataFrame:
    """The pairs of images that show the same photograph, the most similar first.

    Args:
        samples: rows of the sample table, [n].
        bits: bool [n, 256], their hashes.
        features: float32 [n, D].

    Returns:
        A row a pair: id_a, path_a, split_a, class_a, and the same of b; hash_distance (differing bits, 0..48 of
        256); feature_similarity (cosine, 0.9..1).
    """
    from pipeline.explain import neighbours  # and with it torch, which hashes do not need

    a, b = close_pairs(bits)
    unit = neighbours.unit_length(features)
    similarity = np.einsum("ij,ij->i", unit[a], unit[b])
    confirmed = similarity >= MIN_SIMILARITY
    a, b = a[confirmed], b[confirmed]
    columns = {}
    for side, rows in (("a", a), ("b", b)):
        for name in ("id", "path", "split", "class_name"):
            columns[f"{name.removesuffix('_name')}_{side}"] = samples[name].to_numpy()[rows]
    doubles = pd.DataFrame(columns).assign(
        hash_distance=(bits[a] != bits[b]).sum(axis=1), feature_similarity=similarity[confirmed]
    )
    return doubles.sort_values(["hash_distance", "id_a", "id_b"], ignore_index=True)


def leaked(doubles: pd.DataFrame) -> pd.DataFrame:
    """The test images with a near-duplicate in train or validation, as decisions to leave them out of a score.

    Args:
        doubles: pairs, as `pairs` returns them.

    Returns:
        A row an image, by id: id, path, decision (`drop`), why: of which images it is a near-duplicate.
    """
    sides = [
        doubles.rename(columns={f"{name}_{side}": name for name in ("id", "path", "split")}).rename(
            columns={f"{name}_{other}": f"other_{name}" for name in ("id", "split")}
        )[["id", "path", "split", "other_id", "other_split"]]
        for side, other in (("a", "b"), ("b", "a"))
    ]
    found = pd.concat(sides)
    found = found[(found["split"] == "test") & (found["other_split"] != "test")].sort_values(
        ["id", "other_id"]
    )
    of = "image " + found["other_id"].astype(str) + " of " + found["other_split"].astype(str)
    why = "near-duplicate of " + of.groupby(found["id"]).agg(" and ".join)
    rows = found.drop_duplicates("id")[["id", "path"]].assign(decision=DROP)
    return rows.assign(why=rows["id"].map(why)).reset_index(drop=True)


def write_pictures(doubles: pd.DataFrame, ids: Sequence[int], store: Store, folder: Path) -> None:
    """Write each pair side by side as ID_A-ID_B.jpg.

    Args:
        doubles: pairs, as `pairs` returns them.
        ids: image ids of the rows of the store.
    """
    folder.mkdir(parents=True)
    row_of = {number: row for row, number in enumerate(ids)}
    for a, b in zip(doubles["id_a"], doubles["id_b"], strict=True):
        both = np.hstack([_scaled(store[row_of[number]]) for number in (a, b)])
        path = folder / f"{a}-{b}.jpg"
        _, jpeg = cv2.imencode(
            ".jpg", cv2.cvtColor(both, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        with named(path):  # cv2.imwrite does not say why it failed
            path.write_bytes(jpeg.tobytes())


def _scaled(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = picture.shape[:2]
    size = round(width * PICTURE_PX / height), PICTURE_PX
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
