"""The four ways to look: each makes a figure, the arrays behind it, and a line that sums it up."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vankit.errors import UserError
from vankit.explanation import figures, maps
from vankit.explanation.subjects import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GENERATED = 20  # inputs, as many as Luo et al. average over
_DPI = 110


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network looks at, in one image or, for receptive fields and statistics, in all of them.

    Attributes:
        source: the image's path or description, or what was averaged over.
        summary: one line.
        figure: a matplotlib figure; a notebook shows it for the explanation.
        maps: by name, the arrays drawn, at the resolution they were computed at; as they are, before any scaling.
        rows: the numbers in the figure as a table.
        path: the picture's file, where one was written.
    """

    source: str
    summary: str
    figure: "Figure" = field(repr=False)
    maps: dict[str, NDArray[Any]] = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    path: Path | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Write the figure; the suffix decides the format, as matplotlib knows them."""
        self.figure.savefig(path, dpi=_DPI, bbox_inches="tight")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
        return buffer.getvalue()


class Method(Protocol):
    """A way to look at one picture after the other."""

    def one(self, source: str, image: Image.Image) -> Explanation | None:
        """Look at a picture."""

    def all(self) -> Iterator[Explanation]:
        """What there is to say of all of them."""


class GradCam:
    """Grad-CAM of every subject side by side; see `vankit.explain`."""

    def __init__(
        self, subjects: Sequence[Subject], targets: Sequence[str | int | None], stage: int | None, layer: str | None
    ) -> None:
        if layer is None and stage is None:
            stage = 4
        self.subjects = subjects
        self.layers = [next(iter(maps.layers_of(s.body, stage, layer).items())) for s in subjects]
        self.targets = [[None if name is None else s.class_number(name) for name in targets] for s in subjects]

    def one(self, source: str, image: Image.Image) -> Explanation:
        lines, heats, rows = [], {}, []
        for subject, (place, layer), targets in zip(self.subjects, self.layers, self.targets, strict=True):
            line: list[figures.Panel] = []
            for target in targets:
                heat, picture, shown, index = _explained(subject, layer, image, target)
                if not line:
                    line.append((picture, None, f"{subject.name}\npredicted: {subject.verdict(shown)}"))
                verdict = subject.verdict(shown, index) + ("" if heat.any() else ": no positive evidence")
                line.append((picture, heat, f"{subject.name}, {place}\n{verdict}"))
                heats[f"{subject.name} {subject.classes[index]}"] = heat
                chosen = {"class": subject.classes[index], "index": index, "score": float(shown[index])}
                rows.append({"model": subject.name, "layer": layer, **chosen, "largest": float(heat.max())})
            lines.append(line)
        if len(self.targets[0]) == 1:  # side by side, beside the picture as the first network sees it
            lines = [lines[0][:1] + [line[1] for line in lines]]
        summary = "; ".join(f"{row['model']} {row['class']} {row['score']:.1%}" for row in rows)
        return Explanation(source, summary, figures.draw_heat(lines), heats, rows)

    def all(self) -> Iterator[Explanation]:
        return iter(())


def _explained(
    subject: Subject, layer: str, image: Image.Image, target: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], int]:
    """Heat (h, w), picture (H, W, 3), scores (classes,), and the class explained."""
    found: list[tuple[NDArray[np.float64], int]] = []

    def score(x: Tensor) -> Tensor:
        scores, shown = subject.scores(x)
        index = subject.choose(shown, target)
        found.append((shown, index))
        return scores[index][None]

    with maps.inputs_of(subject.body) as inputs:
        heat = maps.grad_cam(subject.body, layer, subject.prepare(image), score)[0]
    return heat.float().cpu().numpy(), subject.picture(inputs[0]), *found[0]


class Attention:
    """The LKA attention of every block; see `vankit.explain`."""

    def __init__(self, subject: Subject, stage: int | None) -> None:
        self.subject, self.blocks = subject, maps.blocks_of(subject.body, stage)

    def one(self, source: str, image: Image.Image) -> Explanation:
        found: dict[maps.Block, NDArray[np.float32]] = {}

        def take(block: maps.Block, attention: Tensor) -> None:
            found[block] = attention[0].abs().mean(0).float().cpu().numpy()

        with torch.no_grad(), maps.inputs_of(self.subject.body) as inputs, maps.watching(self.blocks, take):
            _, shown = self.subject.scores(self.subject.prepare(image))
        verdict = f"{self.subject.name}: {self.subject.verdict(shown)}"
        heats = dict(sorted(found.items()))
        rows = [
            {"stage": stage, "block": block, "min": float(x.min()), "mean": float(x.mean()), "max": float(x.max())}
            for (stage, block), x in heats.items()
        ]
        named = {f"stage {stage} block {block}": x for (stage, block), x in heats.items()}
        figure = figures.draw_blocks(self.subject.picture(inputs[0]), heats, verdict)
        return Explanation(source, f"{verdict}, {len(rows)} blocks", figure, named, rows)

    def all(self) -> Iterator[Explanation]:
        return iter(())


class ReceptiveField:
    """The effective receptive field, the mean over pictures or over generated input; see `vankit.explain`."""

    def __init__(self, subjects: Sequence[Subject], stage: int | None, layer: str | None, generate: bool) -> None:
        self.subjects, self.generate = subjects, generate
        self.layers = [maps.layers_of(subject.body, stage, layer) for subject in subjects]
        self.totals: list[Any] = [0.0] * len(subjects)
        self.count = 0
        if not generate and (loose := [subject.name for subject in subjects if not subject.fixed_size]):
            raise UserError(f"{loose[0]} takes pictures of all sizes, which have no average: leave out the images")

    def one(self, source: str, image: Image.Image) -> None:
        self._add([subject.prepare(image) for subject in self.subjects])

    def _add(self, inputs: Sequence[Tensor]) -> None:
        found = [
            np.stack(maps.receptive_fields(subject.body, list(layers.values()), x, seed=self.count))  # (L, H, W)
            for subject, layers, x in zip(self.subjects, self.layers, inputs, strict=True)
        ]
        self.totals = [total + fields for total, fields in zip(self.totals, found, strict=True)]
        self.count += 1

    def all(self) -> Iterator[Explanation]:
        if self.generate:
            generator = torch.Generator().manual_seed(0)
            for _ in range(_GENERATED):  # standard normal, about what the values of a normalised picture are
                self._add([torch.randn(1, *s.input_size, generator=generator).to(s.device) for s in self.subjects])
        if not self.count:
            return
        drawn: dict[str, dict[str, Any]] = {}
        rows, named = [], {}
        for subject, layers, total in zip(self.subjects, self.layers, self.totals, strict=True):
            for place, values in zip(layers, total / self.count, strict=True):
                size = maps.extent(values)
                rows.append({"model": subject.name, "place": place, **size})
                named[f"{subject.name} {place}"] = values
                text = f"extent {size['height']}x{size['width']} px\neffective {size['effective']:.0f} px"
                drawn.setdefault(subject.name, {})[place] = values, text
        summary = "; ".join(f"{row['model']} {row['place']} {row['effective']:.0f} px" for row in rows)
        source = f"{self.count} {'generated input' if self.generate else 'image'}{'s'[: self.count > 1]}"
        yield Explanation(source, summary, figures.draw_fields(drawn), named, rows)


class Statistics:
    """Figures of every LKA channel over the pictures; see `vankit.explain`."""

    def __init__(self, subject: Subject, stage: int | None) -> None:
        self.subject, self.blocks = subject, maps.blocks_of(subject.body, stage)
        self.sums, self.count = maps.ChannelStatistics(), 0

    def one(self, source: str, image: Image.Image) -> None:
        taken: list[tuple[maps.Block, Tensor]] = []
        with torch.no_grad(), maps.watching(self.blocks, lambda *found: taken.append(found)):
            self.subject.scores(self.subject.prepare(image))
        for block, attention in taken:  # of whole pictures only
            self.sums.add(block, attention)
        self.count += 1

    def all(self) -> Iterator[Explanation]:
        if not self.count:
            return
        rows, source = self.sums.rows(), f"{self.count} image{'s'[: self.count > 1]}"
        figure = figures.draw_statistics(rows, f"LKA attention of {self.subject.name}, {source}")
        yield Explanation(source, f"{len(rows):,} channels of {len(self.blocks)} blocks", figure, {}, rows)
