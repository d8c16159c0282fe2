"""Grad-CAM as a picture, whoever computes it."""

from collections.abc import Iterator, Sequence

from PIL import Image

from vankit.explanation import figures
from vankit.explanation.results import Explanation
from vankit.explanation.subjects import Subject


class GradCam:
    """Grad-CAM of every subject side by side.

    Args:
        targets: classes; the predicted one of each picture if there are none.
        stage, layer: see `vankit.explain`.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        targets: Sequence[str | int],
        stage: int | None = None,
        layer: str | None = None,
    ) -> None:
        self.subjects = subjects
        self.layers = [s.place(stage, layer) for s in subjects]
        self.targets: list[Sequence[int | None]] = [
            [s.class_number(name) for name in targets] or [None] for s in subjects
        ]

    def one(self, source: str, image: Image.Image) -> Explanation:
        lines, heats, rows = [], {}, []
        for subject, (place, layer), targets in zip(self.subjects, self.layers, self.targets, strict=True):
            line: list[figures.Panel] = []
            for target in targets:
                heat, picture, shown, index = subject.grad_cam(image, layer, target)
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
