"""The report as a page: the figures are in it, pictures too, and nothing is fetched."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.data.scenes import ShapeScenes
from vankit.inspection.samples import covering, spread


class Tables(HTMLParser):
    """The cells of every row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data


def pictures(text: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(found)))
        for found in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    ]


def test_the_page_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "a <b>"
    for i in range(30):
        path = root / ("train" if i < 24 else "val") / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i % 29).integers(0, 256, (8, 9 + (i == 0), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "train" / "class0" / "0.jpg").write_bytes(b"broken")
    (root / "val" / "class1" / "copy.png").write_bytes((root / "train" / "class1" / "1.png").read_bytes())
    page = tmp_path / "report.html"
    result = vankit.inspect(root, output=page, workers=0)
    text = page.read_text()
    rows = Tables(text).rows
    assert ["train", "24", "9 × 8", "9 × 8", "10 × 8", "100.0%"] in rows
    assert ["class0", "12", "3"] in rows and ["class1", "12", "4"] in rows
    assert any(row[:4] == ["ends training", "train", "images that cannot be read", "1"] for row in rows)
    assert "a &lt;b&gt;: classify" in text and "<b>" not in text
    assert result.command.replace("'", "&#x27;").replace("<", "&lt;").replace(">", "&gt;") in text
    assert len(pictures(text)) == 8 + 8 + 1  # of each class, and of the copy
    assert {max(picture.size) for picture in pictures(text)} <= {96, 99, 100}  # tiny ones are enlarged
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text.replace('xlink:href="#', 'href="#'))


@pytest.mark.parametrize("task", ["segment", "panoptic", "detect"])
def test_the_pages_of_scenes(tmp_path: Path, task: str) -> None:
    from test_docs import write_coco, write_streets

    (write_streets if task == "segment" else write_coco)(tmp_path / "set")
    vankit.inspect(tmp_path / "set", task, tmp_path / "report.html", workers=0)
    text = (tmp_path / "report.html").read_text()
    drawn = pictures(text)
    folder = "images/train" if task == "segment" else "train2017"
    assert len(drawn) == len(list((tmp_path / "set" / folder).iterdir()))
    dataset = ShapeScenes(task, "train", size=64)
    original = np.asarray(dataset[0][0])
    shown = np.asarray(drawn[0])[:128, :128]  # each pixel as two, above a legend
    assert shown.shape == (128, 128, 3)
    assert np.abs(shown[::2, ::2].astype(int) - original).mean() > 20  # it was drawn on
    assert any(row[0] == dataset.classes[0] for row in Tables(text).rows if row)


def test_of_many_items_some_are_taken_at_equal_distances() -> None:
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(100), 4) == [0, 25, 50, 75]


def test_pictures_that_show_every_class_are_chosen() -> None:
    members = [list(range(100)), [7, 50], [], [50], [99]]
    chosen = covering(members, range(100))
    assert chosen[:2] == [50, 99] and 30 < len(chosen) == len(set(chosen)) <= 36  # 50 is of class 1 too, and both of 0
    many = [[i] for i in range(500)]
    assert len(covering(many, range(500))) == 36
