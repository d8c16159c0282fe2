"""The ways to look that need the layers of a network in PyTorch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vankit.errors import UserError
from vankit.explanation import figures, maps
from vankit.explanation.networks import NetworkSubject
from vankit.explanation.results import Explanation

_GENERATED = 20  # inputs, as many as Luo et al. average over


class Attention:
    """The LKA attention of every block; see `vankit.explain`."""

    def __init__(self, subject: NetworkSubject, stage: int | None) -> None:
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
        figure = figures.draw_blocks(self.subject.seen(inputs[0]), heats, verdict)
        return Explanation(source, f"{verdict}, {len(rows)} blocks", figure, named, rows)

    def all(self) -> Iterator[Explanation]:
        return iter(())


class ReceptiveField:
    """The effective receptive field, the mean over pictures or over generated input; see `vankit.explain`."""

    def __init__(
        self, subjects: Sequence[NetworkSubject], stage: int | None, layer: str | None, generate: bool
    ) -> None:
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

    def __init__(self, subject: NetworkSubject, stage: int | None) -> None:
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
