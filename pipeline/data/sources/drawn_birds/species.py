"""Species of drawn birds: vectors of traits, their names, and their attributes in CUB's words.

A genus has four species and two traits in which they differ; each species differs from the next
one of its genus in exactly one trait.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from pipeline.common import seeding

COLOURS: dict[str, tuple[int, int, int]] = {
    "blue": (58, 104, 186),
    "brown": (120, 84, 54),
    "purple": (112, 70, 142),
    "rufous": (178, 86, 42),
    "grey": (126, 132, 140),
    "yellow": (242, 206, 62),
    "olive": (126, 126, 60),
    "green": (66, 138, 74),
    "pink": (234, 148, 156),
    "orange": (238, 138, 44),
    "black": (40, 38, 42),
    "white": (244, 242, 236),
    "red": (204, 46, 40),
    "buff": (222, 192, 142),
}
BILLS = {  # length, depth and droop in head radii; nouns of the birds that have such a bill
    "cone": (0.62, 0.56, 0.10, "Finch Bunting Sparrow Grosbeak Cardinal Seedeater"),
    "all-purpose": (0.72, 0.34, 0.05, "Warbler Thrush Robin Chat Tanager Flycatcher"),
    "dagger": (1.15, 0.40, 0.02, "Oriole Blackbird Starling Kingfisher Grackle Cowbird"),
    "needle": (1.35, 0.20, 0.10, "Sunbird Honeyeater Spinebill Sapphire Woodstar Emerald"),
    "curved": (1.25, 0.28, 0.55, "Thrasher Wren Creeper Hoopoe Sicklebill Scythebill"),
    "hooked": (0.80, 0.46, 0.34, "Shrike Vireo Jay Nutcracker Butcherbird Kiskadee"),
}
PLACES = (
    "Wood", "Marsh", "Hill", "River", "Cloud", "Coast", "Island",
    "Meadow", "Desert", "Forest", "Valley", "Reed", "Stone", "Orchard",
)  # fmt: skip
# back, wing, breast, belly: what a genus may start from
SCHEMES = [line.split() for line in (
    "brown brown buff white", "olive black yellow white", "blue blue orange white",
    "grey black white white", "rufous brown buff buff", "black black orange white",
    "green green yellow yellow", "grey grey pink white", "blue black white white",
    "brown rufous white buff", "olive olive buff yellow", "black black red black",
    "green blue red buff", "buff brown white white", "purple blue pink buff",
    "grey blue rufous buff", "rufous black white white", "yellow black yellow white",
    "red black red red", "olive brown orange buff",
)]  # fmt: skip
# what a genus may differ in, and the values that are told apart at a glance
CONTRASTS: dict[str, tuple[Any, ...]] = {
    "crown_color": ("red", "yellow", "black", "white", "blue", "green"),
    "throat_color": ("red", "yellow", "black", "white", "blue", "green"),
    "breast_color": ("red", "yellow", "black", "white", "blue", "green"),
    "belly_color": ("white", "yellow", "rufous", "black", "blue"),
    "wing_color": ("black", "blue", "green", "rufous", "yellow"),
    "breast_pattern": ("solid", "striped", "spotted"),
    "wing_bars": (0, 2),
    "face": ("plain", "masked", "eyering"),
    "crest": (False, True),
    "tail_length": ("short", "long"),
    "tail_pattern": ("solid", "striped"),
}
EPITHETS = {
    "crown_color": "{}_crowned", "throat_color": "{}_throated", "breast_color": "{}_breasted",
    "belly_color": "{}_bellied", "wing_color": "{}_winged",
    "breast_pattern": "{}_breasted", "tail_length": "{}_tailed",
    "solid": "Plain", "striped": "Streaked", "spotted": "Spotted",
    "wing_bars=0": "Plain_winged", "wing_bars=2": "Bar_winged",
    "face=plain": "Plain_faced", "face=masked": "Masked",
    "face=eyering": "Spectacled", "crest=False": "Smooth_headed", "crest=True": "Crested",
    "tail_pattern=solid": "Plain_tailed", "tail_pattern=striped": "Band_tailed",
}  # fmt: skip


@dataclass(frozen=True)
class Species:
    """What all birds of a species share; colours are keys of `COLOURS`."""

    name: str
    back_color: str
    wing_color: str
    breast_color: str
    belly_color: str
    throat_color: str
    crown_color: str
    bill_shape: str
    bill_color: str
    leg_color: str
    eye_color: str
    face: str
    crest: bool
    breast_pattern: str
    wing_bars: int
    tail_shape: str
    tail_length: str
    tail_pattern: str

    @property
    def traits(self) -> dict[str, Any]:
        """All but the name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}


def species_list(count: int, seed: int) -> list[Species]:
    """The first `count` species of the world that `seed` names: unique traits and unique names.

    Names are `NNN.Words_With_Underscores` as in CUB-200-2011, numbered from 1. A longer list
    begins with the shorter one.
    """
    numbered: list[Species] = []
    names: set[str] = set()
    vectors: set[tuple[Any, ...]] = set()
    attempt = 0
    while len(numbered) < count:
        group = _genus(seeding.generator("genus", seed, attempt))
        attempt += 1
        new_vectors, new_names = (
            {tuple(bird.traits.values()) for bird in group},
            {bird.name for bird in group},
        )
        if vectors & new_vectors or names & new_names:
            continue
        vectors |= new_vectors
        names |= new_names
        for bird in group:
            numbered.append(replace(bird, name=f"{len(numbered) + 1:03d}.{bird.name}"))
    return numbered[:count]


def _genus(rng: np.random.Generator) -> list[Species]:
    """Four species around a square of two traits; their names have no number yet."""

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    back, wing, breast, belly = pick(*SCHEMES)
    base = Species(
        name="", back_color=back, wing_color=wing, breast_color=breast, belly_color=belly,
        throat_color=pick(breast, breast, "white", "black", "yellow"),
        crown_color=pick(back, back, "black", "red", "yellow", "rufous", "white"),
        bill_shape=pick(*BILLS), bill_color=pick("black", "black", "grey", "yellow", "orange", "red"),
        leg_color=pick("black", "grey", "pink", "orange"), eye_color=pick("black", "black", "red", "yellow"),
        face=pick("plain", "plain", "eyebrow", "masked", "eyering"), crest=pick(False, False, True),
        breast_pattern=pick("solid", "solid", "striped", "spotted"), wing_bars=pick(0, 0, 0, 2),
        tail_shape=pick("squared", "forked", "pointed", "rounded"),
        tail_length=pick("short", "medium", "long"), tail_pattern=pick("solid", "solid", "striped", "tipped"),
    )  # fmt: skip
    first, second = (str(name) for name in rng.choice(list(CONTRASTS), 2, replace=False))
    base, first_value = _contrast(base, first, rng)
    base, second_value = _contrast(base, second, rng)
    noun = f"{pick(*PLACES)}_{pick(*BILLS[base.bill_shape][3].split())}"
    a, b = {first: first_value}, {second: second_value}
    square = [base, replace(base, **a), replace(base, **a, **b), replace(base, **b)]
    return [replace(s, name=f"{_epithet(s, first)}_{_epithet(s, second)}_{noun}") for s in square]


def _contrast(base: Species, trait: str, rng: np.random.Generator) -> tuple[Species, Any]:
    """The species with a value of `trait` that stands out from its other colours, and another such."""
    others = {base.back_color, base.wing_color, base.breast_color, base.belly_color} - {getattr(base, trait)}
    values = [value for value in CONTRASTS[trait] if value not in others]
    first, second = rng.permutation(len(values))[:2]
    return replace(base, **{trait: values[first]}), values[second]


def _epithet(species: Species, trait: str) -> str:
    value = getattr(species, trait)
    if f"{trait}={value}" in EPITHETS:
        return EPITHETS[f"{trait}={value}"]
    return EPITHETS[trait].format(EPITHETS.get(value, str(value).capitalize()))


# CUB-200-2011's 312 attributes: groups in its order, each with its values in its order
_COLOURS = "blue brown iridescent purple rufous grey yellow olive green pink orange black white red buff"
_PATTERN = "solid spotted striped multi-colored"
ATTRIBUTES = {
    "bill_shape": "curved_(up_or_down) dagger hooked needle hooked_seabird spatulate all-purpose cone "
    "specialized",
    "wing_color": _COLOURS,
    "upperparts_color": _COLOURS,
    "underparts_color": _COLOURS,
    "breast_pattern": _PATTERN,
    "back_color": _COLOURS,
    "tail_shape": "forked_tail rounded_tail notched_tail fan-shaped_tail pointed_tail squared_tail",
    "upper_tail_color": _COLOURS,
    "head_pattern": "spotted malar crested masked unique_pattern eyebrow eyering plain eyeline striped "
    "capped",
    "breast_color": _COLOURS,
    "throat_color": _COLOURS,
    "eye_color": _COLOURS.replace("iridescent ", ""),
    "bill_length": "about_the_same_as_head longer_than_head shorter_than_head",
    "forehead_color": _COLOURS,
    "under_tail_color": _COLOURS,
    "nape_color": _COLOURS,
    "belly_color": _COLOURS,
    "wing_shape": "rounded-wings pointed-wings broad-wings tapered-wings long-wings",
    "size": "large_(16_-_32_in) small_(5_-_9_in) very_large_(32_-_72_in) medium_(9_-_16_in) "
    "very_small_(3_-_5_in)",
    "shape": "upright-perching_water-like chicken-like-marsh long-legged-like duck-like owl-like gull-like "
    "hummingbird-like pigeon-like tree-clinging-like hawk-like sandpiper-like upland-ground-like "
    "swallow-like perching-like",
    "back_pattern": _PATTERN,
    "tail_pattern": _PATTERN,
    "belly_pattern": _PATTERN,
    "primary_color": _COLOURS,
    "leg_color": _COLOURS,
    "bill_color": _COLOURS,
    "crown_color": _COLOURS,
    "wing_pattern": _PATTERN,
}


def attributes(species: Species) -> dict[str, bool]:
    """Whether a species has each of CUB-200-2011's 312 attributes, `has_bill_shape::dagger` and so on.

    The order is that of CUB's `attributes.txt`. A part that shows two colours has both.
    """
    length = BILLS[species.bill_shape][0]
    head = {species.face.replace("plain", "")} | ({"crested"} if species.crest else set())
    if species.crown_color != species.back_color:
        head.add("capped")
    values: dict[str, set[str]] = {
        "bill_shape": {"curved_(up_or_down)" if species.bill_shape == "curved" else species.bill_shape},
        "upperparts_color": {species.back_color, species.wing_color},
        "underparts_color": {species.breast_color, species.belly_color},
        "tail_shape": {f"{species.tail_shape}_tail"},
        "upper_tail_color": {species.wing_color},
        "under_tail_color": {species.wing_color},
        "head_pattern": head - {""} or {"plain"},
        "bill_length": {("shorter_than_head", "about_the_same_as_head")[length > 0.9]},
        "forehead_color": {species.crown_color},
        "nape_color": {species.back_color},
        "wing_shape": {"rounded-wings"},
        "size": {"small_(5_-_9_in)"},
        "shape": {"perching-like"},
        "back_pattern": {"solid"},
        "tail_pattern": {"multi-colored" if species.tail_pattern == "tipped" else species.tail_pattern},
        "belly_pattern": {species.breast_pattern},
        "primary_color": {species.back_color},
        "wing_pattern": {"striped" if species.wing_bars else "solid"},
    }
    values |= {group: {str(getattr(species, group))} for group in ATTRIBUTES if group not in values}
    return {
        f"has_{group}::{word}": word in values[group]
        for group, words in ATTRIBUTES.items()
        for word in words.split()
    }
