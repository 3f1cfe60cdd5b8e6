"""Folders of class folders, and tables of pictures: hostile names, structures, cells and pictures."""

import io
import os
import random
import unicodedata
from collections.abc import Iterator

import pandas as pd
import picture_tables
from given_pictures import CLASSES, PICTURES, SPLITS, Action, Given, case_of, class_folders, pictures_in, png
from harness import Case
from PIL import Image
from world import World

LONG = "a" * 251
NAMES = [
    "NA", "nan", "007", "1e5", "true", "-", " before", "behind ", "two\nlines", "a\rb", "tab\tbed", "M\u00f6we",
    "Mo\u0308we", "GULL", "gull ", "gu\u2028ll", "\u202egull", "\x1b[31mred", "\U0001f426", "con", "a,b", '"q"', "'",
    "a\\b", "=1+1", "%s", "{0}", "$HOME", "~", "-x", "...", "\udcff\udcfe", ".hidden", "__MACOSX", "train", "test",
    "Test", "val", LONG + "\u00e9\u00e9", "\u00df", "\u0130", "\u00a0", "*", "?", "[a]", "\x7f", "C:", "images",
]  # fmt: skip


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    makers = [_names, _structure, _contents, _split_folders]
    makers += [picture_tables.cells, picture_tables.cells, picture_tables.columns, picture_tables.groups]
    makers += [picture_tables.contents]
    while True:
        yield draw.choice(makers)(world, draw)


def _renamed(files: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    return {name.replace(old, new, 1): content for name, content in files.items()}


def _names(world: World, draw: random.Random) -> Case:
    """A class or a picture, or both, of another name."""
    given, ways = Given(class_folders(draw)), []
    for _ in range(draw.choice([1, 1, 2])):
        name = draw.choice(NAMES)
        if draw.random() < 0.6:
            given.files = _renamed(given.files, f"/{draw.choice(CLASSES)}/", f"/{name}/")
            ways.append(f"a class {name!a}")
        else:
            suffix = draw.choice([".png", ".PNG", ".jpg", ".txt", "", ".png.png", ".heic"])
            name = name.encode("utf-8", "surrogateescape")[: 255 - len(suffix)].decode(
                "utf-8", "surrogateescape"
            )
            given.files = _renamed(
                given.files, f"/gull/{draw.randrange(PICTURES)}.png", f"/gull/{name}{suffix}"
            )
            ways.append(f"a picture {name + suffix!a}")
    return _folder_case(world, draw, "folder, " + " and ".join(ways), given)


def _structure(world: World, draw: random.Random) -> Case:
    """Folders that are empty, nested, linked, in circles, or no folders at all."""
    given = Given(class_folders(draw))
    first = given.files["mine/crow/0.png"]
    links: dict[str, Action] = {
        "a link up": lambda mine: (mine / "gull" / "up").symlink_to(".."),
        "a link to itself as a class": lambda mine: (mine / "loop").symlink_to("loop"),
        "a link to itself as a picture": lambda mine: (mine / "gull" / "loop.png").symlink_to("loop.png"),
        "a link to nothing": lambda mine: (mine / "gull" / "gone.png").symlink_to("nowhere"),
        "a link to a picture": lambda mine: (mine / "gull" / "linked.png").symlink_to("../crow/0.png"),
        "a link to /": lambda mine: (mine / "gull" / "root").symlink_to("/"),
        "a linked class": lambda mine: (mine / "other").symlink_to("crow"),
        "a pipe as a picture": lambda mine: os.mkfifo(mine / "gull" / "pipe.png"),
        "a folder named as a picture": lambda mine: (mine / "gull" / "folder.png").mkdir(),
        "an empty class": lambda mine: (mine / "empty").mkdir(),
        "no rights": lambda mine: (mine / "gull").chmod(0),
    }  # fmt: skip
    files: dict[str, dict[str, bytes]] = {
        "nested": {"mine/crow/young/a.png": first},
        "a picture at the top": {"mine/a.png": first},
        "a file where a class is": {"mine/sparrow": b"x"},
        "a class of one picture": {"mine/sparrow/0.png": first},
        "files of systems": {"mine/Thumbs.db": b"x", "mine/.DS_Store": b"x", "mine/crow/._0.png": b"x"},
        "a hidden class": {"mine/.git/a.png": first},
        "a hundred classes of two": {f"mine/c{number}/{n}.png": first for number in range(100) for n in "ab"},
        "twenty folders deep": {"mine/" + "a/" * 20 + "x.png": first},
    }
    wholes: dict[str, dict[str, bytes]] = {
        "empty": {},
        "one class": {name: each for name, each in given.files.items() if "/gull/" in name},
        "pictures alone": {f"mine/{n}.png": first for n in range(3)},
        "one folder too many": {f"mine/{name}": each for name, each in given.files.items()},
        "a file": {"mine": first},
    }
    what = draw.choice([*links, *files, *wholes, "not there", "the root of the disk", "data.root in it"])
    if what in links:
        given.actions.append(links[what])
    elif what in wholes:
        given.files = wholes[what]
        given.actions += [lambda mine: mine.mkdir()] if what == "empty" else []
    elif what in files:
        given.files.update(files[what])
    else:
        given.path = {"not there": "nowhere", "the root of the disk": "/", "data.root in it": "."}[what]
    return _folder_case(world, draw, f"folder, {what}", given)


def _contents(world: World, draw: random.Random) -> Case:
    """Some pictures that are none, or are of unusual sizes."""
    given = Given(class_folders(draw))
    huge = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(huge, "PNG")
    kinds = {
        "empty": b"",
        "text": b"no picture",
        "HTML": b"<!DOCTYPE html>",
        "1 px": png(draw, 1, 1),
        "1 x 500 px": png(draw, 1, 500),
        "900 megapixels": huge.getvalue(),
        "cut short": png(draw)[:200],
        "a byte too long": png(draw) + b"\0",
    }
    what, count = draw.choice(sorted(kinds)), draw.choice([1, 3, PICTURES])
    given.files |= {f"mine/gull/{n}.png": kinds[what] for n in range(count)}
    return _folder_case(world, draw, f"folder, {count} of {PICTURES} pictures of a class: {what}", given)


def _split_folders(world: World, draw: random.Random) -> Case:
    """Folders of splits, some of which lack classes, or have others."""
    splits = draw.sample(["train", "val", "valid", "test", "Test", "dev"], draw.choice([1, 2, 3]))
    given = Given()
    for split in splits:
        given.files |= class_folders(draw, f"mine/{split}", 3)
    drop = f"mine/{draw.choice(splits)}/gull/" if draw.random() < 0.4 else "\0"
    given.files = {name: content for name, content in given.files.items() if not name.startswith(drop)}
    if beside := draw.random() < 0.2:
        given.files["mine/owl/0.png"] = png(draw)
    what = f"folder, splits {splits}{' less a class' if drop != chr(0) else ''}{' beside a class' if beside else ''}"
    return _folder_case(world, draw, what, given)


def _folder_case(world: World, draw: random.Random, what: str, given: Given) -> Case:
    def wrong(samples: pd.DataFrame) -> str | None:
        for row in samples.itertuples():
            *above, name, _ = row.path.split("/")
            if row.class_name != unicodedata.normalize("NFC", name):
                return f"{row.path} has the class {row.class_name}"
            split = SPLITS.get(above[0].casefold()) if above else None
            if split in ("val", "test") and row.split != split:
                return f"{row.path} is in {row.split}"
        return None

    return case_of(world, draw, what, "folder", given, wrong, pictures_in)
