"""Colours of classes and objects: apart within a picture, and of a class the same in the next one where possible."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

Colour = tuple[int, int, int]  # RGB, 0 to 255

PALETTE: dict[str, Colour] = {
    "red": (230, 40, 50),
    "blue": (45, 110, 240),
    "yellow": (255, 215, 0),
    "green": (40, 170, 60),
    "orange": (255, 135, 20),
    "purple": (150, 60, 205),
    "cyan": (0, 205, 225),
    "magenta": (240, 60, 190),
    "lime": (165, 225, 40),
    "brown": (155, 90, 40),
    "teal": (0, 130, 140),
    "pink": (255, 150, 180),
    "indigo": (65, 50, 150),
    "olive": (135, 135, 20),
    "mint": (110, 235, 175),
    "lavender": (190, 155, 255),
    "maroon": (145, 25, 65),
    "sky": (120, 180, 255),
    "forest": (20, 95, 45),
}
# for pictures with more classes than that, each as far in OKLab from all before it as can be
_FURTHER: tuple[Colour, ...] = (
    (0, 0, 240), (180, 120, 150), (255, 210, 255), (180, 180, 120), (120, 90, 135), (210, 0, 255), (105, 0, 255),
    (105, 60, 0), (180, 0, 135), (255, 195, 150), (165, 240, 255), (120, 0, 135), (90, 165, 150), (0, 90, 120),
    (255, 120, 255), (120, 135, 210), (0, 210, 0), (180, 105, 255), (0, 255, 0), (255, 90, 135), (210, 105, 15),
)  # fmt: skip
_NATURAL = {"sky": "sky", "tree": "green", "vegetation": "green", "grass": "lime", "sea": "blue", "water": "blue"}

# of Cityscapes (labels.py of cityscapesScripts), under the names that Cityscapes, CamVid and others have for them
_STREET: dict[Colour, str] = {
    (128, 64, 128): "road, street",
    (244, 35, 232): "sidewalk, pavement, footpath",
    (250, 170, 160): "parking, parking block",
    (230, 150, 140): "rail track",
    (70, 70, 70): "building",
    (102, 102, 156): "wall",
    (190, 153, 153): "fence",
    (180, 165, 180): "guard rail",
    (150, 100, 100): "bridge, archway",
    (150, 120, 90): "tunnel",
    (153, 153, 153): "pole, column pole, polegroup",
    (250, 170, 30): "traffic light",
    (220, 220, 0): "traffic sign, sign, sign symbol, signsymbol",
    (107, 142, 35): "vegetation, tree, vegetation misc",
    (152, 251, 152): "terrain, grass",
    (70, 130, 180): "sky",
    (220, 20, 60): "person, pedestrian",
    (255, 0, 0): "rider",
    (0, 0, 142): "car",
    (0, 0, 70): "truck, suv pickup truck, truck bus",
    (0, 60, 100): "bus",
    (0, 0, 90): "caravan",
    (0, 0, 110): "trailer",
    (0, 80, 100): "train, tram",
    (0, 0, 230): "motorcycle, motorbike, motorcycle scooter",
    (119, 11, 32): "bicycle, bicyclist, cyclist",  # CamVid's bicyclist in the rider's red is too near to a person's
}
_STREET_NAMES = {name: colour for colour, names in _STREET.items() for name in names.split(", ")}
_BESIDE_STREET = ("cyan", "purple", "orange", "lavender", "blue", "forest", "indigo", "green")  # near to none of those

_STEP = 7  # to a class's second choice: the next one is likely to be there with it; prime to the palettes' lengths
_LIGHT, _DARK = 0.65, 0.45  # the most that an object's colour differs from its class's


def class_colours(classes: Sequence[str], present: Iterable[int]) -> dict[int, Colour]:
    """The colours of a picture's classes, by label; all differ if there are at most 40.

    A class has its own colour in every picture, unless a class of a lower label that is there too has the same. Street
    scenes (most classes are such as road, sky or car) have the colours of Cityscapes.

    Args:
        classes: names by label, of the network.
        present: labels of what is in the picture.
    """
    named, palette = _named(classes)
    chosen: dict[int, Colour] = {}
    later = []
    for label in sorted(set(present), key=lambda label: (label not in named, label)):
        own = named.get(label, palette[label % len(palette)])
        if own in chosen.values():
            later.append(label)
        else:
            chosen[label] = own
    for label in later:
        order = [palette[(label + _STEP * i) % len(palette)] for i in range(len(palette))]
        chosen[label] = next((each for each in (*order, *_FURTHER) if each not in chosen.values()), order[0])
    return chosen


def object_colours(classes: Sequence[str], labels: Sequence[int], across: ArrayLike) -> list[Colour]:
    """The colour of each object of a picture: its class's, in a shade of its own.

    Shades go by the order from left to right, so that neighbours differ, and objects of a video keep theirs as long as
    that order lasts; the leftmost one has the class's colour itself.

    Args:
        classes: names by label, of the network.
        labels: of the objects.
        across: where each object lies from left to right, in any unit.
    """
    colours, seen = class_colours(classes, labels), Counter[int]()
    shaded = [colours[label] for label in labels]
    for i in np.argsort(across, kind="stable").tolist():
        shaded[i] = _shaded(shaded[i], _spread(seen[labels[i]]))
        seen[labels[i]] += 1
    return shaded


def _named(classes: Sequence[str]) -> tuple[dict[int, Colour], list[Colour]]:
    """Colours that classes have by their names, and those for the others."""
    names = [" ".join(re.split(r"[\W_]+(?:other|merged|stuff)\b|[\W_]+", name.lower())).strip() for name in classes]
    if "road" in names and 2 * sum(name in _STREET_NAMES for name in names) >= len(names):
        return _of(names, _STREET_NAMES), [PALETTE[each] for each in _BESIDE_STREET]
    return _of(names, {name: PALETTE[each] for name, each in _NATURAL.items()}), list(PALETTE.values())


def _of(names: Sequence[str], colours: Mapping[str, Colour]) -> dict[int, Colour]:
    return {label: colours[name] for label, name in enumerate(names) if name in colours}


def _spread(index: int) -> float:
    """-1 to 1, each number far from those shortly before it: 0, -1, 0.5, -0.5, 0.25, … (van der Corput)."""
    digits = int(f"{index:b}"[::-1], 2) / 2 ** len(f"{index:b}")  # 0 to 1
    return 2 * ((digits + 0.5) % 1) - 1


def _shaded(colour: Colour, amount: float) -> Colour:
    """Towards white above 0, towards black below; -1 to 1."""
    share, end = (amount * _LIGHT, 255) if amount > 0 else (-amount * _DARK, 0)
    red, green, blue = (round(value + share * (end - value)) for value in colour)
    return red, green, blue
