"""Colours are told apart as people see them: distances in OKLab."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from vankit.tasks.colours import PALETTE, class_colours, object_colours

MANY = [f"class {i}" for i in range(300)]
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
CITYSCAPES = {  # as its labels.py has them
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30), "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35), "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32),
}  # fmt: skip


def oklab(colours: ArrayLike) -> NDArray[np.float64]:
    """https://bottosson.github.io/posts/oklab/, of (N, 3) sRGB."""
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.transpose(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    return np.cbrt(lms) @ np.transpose(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )


def nearest(colours: ArrayLike) -> float:
    """The smallest distance between two colours; black and white are 1 apart."""
    lab = oklab(colours)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return float(distances[~np.eye(len(lab), dtype=bool)].min())


@given(st.sets(st.integers(0, 299), min_size=2, max_size=40))
def test_any_forty_classes_of_a_picture_are_told_apart(present: set[int]) -> None:
    colours = class_colours(MANY, present)
    assert colours.keys() == present
    assert nearest(list(colours.values())) > 0.1


@given(st.sets(st.integers(0, 299), max_size=80), st.integers(0, 299))
def test_a_class_keeps_its_colour_unless_it_is_that_of_another_class(present: set[int], label: int) -> None:
    own = class_colours(MANY, [label])[label]
    colours = class_colours(MANY, {*present, label})
    assert len(colours) == len({*present, label})  # more than there are colours too
    assert colours[label] == own or own in [colours[other] for other in present - {label}]


def test_all_of_a_palettes_length_have_their_own() -> None:
    everything = class_colours(MANY, range(len(PALETTE)))
    assert list(everything.values()) == list(PALETTE.values())


def test_what_nature_has_a_colour_for_has_it_whatever_its_number() -> None:
    classes = [*MANY[:57], "sky-other-merged", "tree-merged", "grass", "Water"]
    colours = class_colours(classes, range(61))
    assert [colours[i] for i in range(57, 61)] == [PALETTE[name] for name in ("sky", "green", "lime", "blue")]


@pytest.mark.parametrize("separator", [" ", "_", "-"])
def test_streets_have_the_colours_of_cityscapes(separator: str) -> None:
    classes = [name.replace(" ", separator).title() for name in CITYSCAPES]
    assert list(class_colours(classes, range(19)).values()) == list(CITYSCAPES.values())


def test_camvid_is_a_street() -> None:
    colours = {CAMVID[label]: colour for label, colour in class_colours(CAMVID, range(11)).items()}
    synonyms = {"pavement": "sidewalk", "tree": "vegetation", "sign": "traffic sign", "pedestrian": "person"}
    for name in {*CAMVID} - {"bicyclist"}:
        assert colours[name] == CITYSCAPES[synonyms.get(name, name)]
    assert colours["bicyclist"] == CITYSCAPES["bicycle"]  # and not the rider's, which is near to the pedestrian's


def test_what_cityscapes_lacks_is_told_apart_from_all_of_it() -> None:
    classes = [*CITYSCAPES, "horse", "cart", "puddle", "crane", "kiosk"]
    colours = oklab(list(class_colours(classes, range(24)).values()))
    distances = np.linalg.norm(colours[19:, None] - colours, axis=-1)
    assert np.sort(distances, 1)[:, 1].min() > 0.07


def test_some_cars_are_no_street() -> None:
    for classes in (["car", "truck", "bus", "train"], ["road", *MANY[:9]]):
        assert nearest(list(class_colours(classes, range(4)).values())) > 0.1


def test_the_leftmost_object_has_its_classs_colour_and_the_others_shades_of_it() -> None:
    labels = [3, 5, 3, 3, 3, 5, 3, 3, 3, 3]
    colours = object_colours(MANY, labels, [9, 2, 7, 6, 5, 4, 3, 1, 0, 8])
    own = class_colours(MANY, labels)
    assert (colours[8], colours[1]) == (own[3], own[5]) and colours[5] != own[5]
    assert len({*colours}) == len(colours)


def test_shades_go_from_left_to_right_whatever_the_order_of_scores() -> None:
    across = np.arange(12.0)
    order = np.random.default_rng(0).permutation(12)
    colours = object_colours(MANY, [4] * 12, across)
    assert object_colours(MANY, [4] * 12, across[order]) == [colours[i] for i in order]


@given(st.integers(0, 18), st.integers(0, 60))
def test_neighbours_of_one_class_are_told_apart(label: int, count: int) -> None:
    colours = object_colours(MANY, [label] * (count + 2), np.arange(count + 2))
    assert np.min(colours) >= 0 and np.max(colours) <= 255
    assert nearest(colours[-2:]) > 0.05
