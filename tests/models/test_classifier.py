"""Class names matched."""

import pytest

import vankit
from vankit.data.folders import class_index


def test_classes_are_matched_by_name_id_or_order() -> None:
    assert class_index(["b", "a"], ["a", "b", "c"]).tolist() == [1, 0]
    imagenet = vankit.Predictor("van_b0", pretrained=False).classes
    assert class_index(["n01443537", "n01440764"], imagenet).tolist() == [1, 0]
    assert class_index(["0", "1", "10"], ["0", "1", "2"], named=False).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"does not know 1 of the data's 2 classes \(z\)"):
        class_index(["a", "z"], ["a", "b"])
