"""A classifier, detector or segmenter to be explained: what it is called, and how a user names its classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.errors import UserError
from vankit.prediction.labels import Predictor, class_number


class Evidence(NamedTuple):
    """Where in a picture a network finds a class.

    Attributes:
        heat: (h, w), 0 or more.
        picture: as the network saw it, (H, W, 3), 0 to 1.
        shown: the scores of all classes, 0 to 1, NaN for a class that was not found.
        label: of the class.
    """

    heat: NDArray[np.float32]
    picture: NDArray[np.float32]
    shown: NDArray[np.float64]
    label: int


class Subject:
    """What is explained.

    Attributes:
        name: of the model.
        classes: names by index.
        mean, std: of the colours that it sees.
    """

    name: str
    classes: list[str]
    mean: Sequence[float]
    std: Sequence[float]

    def place(self, stage: int | None, layer: str | None) -> tuple[str, str]:
        """Where Grad-CAM looks: what the place is called, and its module's name.

        Args:
            stage, layer: see `vankit.explain`.

        Raises:
            ValueError: there is no such place.
        """
        raise NotImplementedError

    def grad_cam(self, image: Image.Image, layer: str, target: int | None) -> Evidence:
        """Explain an RGB picture.

        Args:
            layer: the module's name.
            target: a class; None for the one of the highest score.

        Raises:
            ValueError: the class was not found, or the network's output is not finite.
        """
        raise NotImplementedError

    def choose(self, shown: NDArray[np.float64], target: int | None) -> int:
        """The class to explain: the target, or the one of the highest score.

        Raises:
            ValueError: the network has not found it.
        """
        if np.isnan(shown).all() or (target is not None and np.isnan(shown[target])):
            what = "nothing" if target is None else f"no {self.classes[target]}"
            raise UserError(f"{self.name} found {what} here, so there is no score to explain: try method attention")
        return int(np.nanargmax(shown)) if target is None else target

    def verdict(self, shown: NDArray[np.float64], index: int | None = None) -> str:
        """`cat 83.1 %`, of a class or of the best one."""
        if not self.classes:
            return "no head"
        if index is None and np.isnan(shown).all():
            return "nothing found"
        index = int(np.nanargmax(shown)) if index is None else index
        return f"{self.classes[index].split(',')[0]} {100 * shown[index]:.1f} %"

    def picture(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """A network's input (3, h, w) as a picture (h, w, 3), 0 to 1."""
        return np.asarray((x.transpose(1, 2, 0) * self.std + self.mean).clip(0, 1), np.float32)

    def class_number(self, target: str | int) -> int:
        """The index of a class, see `vankit.prediction.labels.class_number`."""
        return class_number(target, self.classes, self.name)


class ClassMaps(Subject):
    """A classifier whose engine gives the maps of all classes, see `vankit.Predictor.class_maps`: no PyTorch.

    Raises:
        ValueError, ImportError: the engine cannot be made.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor, self.name, self.classes = predictor, name, predictor.classes
        self.mean, self.std = predictor.preprocessing.mean, predictor.preprocessing.std
        predictor.prepare_class_maps()

    def place(self, stage: int | None, layer: str | None) -> tuple[str, str]:
        return "stage 4", "stage4"

    def grad_cam(self, image: Image.Image, layer: str, target: int | None) -> Evidence:
        x = self.predictor.preprocess(image)
        logits, maps = self.predictor.class_maps(x)
        shown = self.predictor.scores(logits[None].astype(np.float64))[0]
        index = self.choose(shown, target)
        return Evidence(maps[index], self.picture(x), shown, index)
