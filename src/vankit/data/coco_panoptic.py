"""COCO's panoptic annotations: segments of things and stuff, a JSON and a folder of PNGs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.data.coco import Coco, Target, Transform, as_target, id_of, picture_of, read_coco
from vankit.data.coco_entries import Content, Flaw, Picture, Segment, flag, text, whole
from vankit.data.masks import boxes_around
from vankit.data.reading import STRICT, Reading
from vankit.errors import MissingFileError, UserError, few


class CocoPanoptic(Coco):
    """Things and stuff of a COCO panoptic file and its PNGs (format: cocodataset.org/#format-data, panoptic).

    Items are (image, target) as of `CocoInstances`, with one entry per segment: `labels` (S,), `masks` (S, H, W),
    `iscrowd` (S,), `boxes` (S, 4) and `area` (S,), both measured on the masks, `image_id`. Other pixels are void.

    Args:
        images: folder that the image names in the JSON are relative to.
        annotations: the JSON.
        segments: folder of the PNGs; by default the path of the JSON without its suffix.
        transform: (image, target) → sample, see `vankit.data.augment`.
        reading: how forgiving to be; `skip_bad` leaves out bad segments and pictures.
        known, root: see `CocoInstances`.

    Attributes: as of `CocoInstances`, and `things` (a bool per class).

    Raises:
        FileNotFoundError: no such JSON, folder, image file or PNG.
        ValueError: the JSON is broken or contradicts itself; names the file and the segment.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        segments: Path | None = None,
        transform: Transform | None = None,
        reading: Reading = STRICT,
        known: Sequence[str] = (),
        root: Path | None = None,
    ) -> None:
        self.segments = Path(annotations).with_suffix("") if segments is None else Path(segments)
        super().__init__(images, annotations, transform, reading, read_coco, known, root)

    def _read_annotations(self, content: Content, pictures: dict[int, Picture | None]) -> None:
        if not self.segments.is_dir():
            raise MissingFileError(f"no folder {self.segments}, expected the PNGs of {self.annotations} there")
        try:
            self.things: list[bool] = [flag(category, "isthing", self.repairs) for category in content["categories"]]
        except ValueError as problem:
            raise UserError(f"{self.annotations}: a category {problem}; is this a panoptic file?") from None
        seen: set[int] = set()
        for entry in content["annotations"]:
            name = self.annotations.name
            try:
                if (picture := picture_of(entry, pictures, self.repairs)) is None:
                    continue
                name = picture.name
                if picture.id in seen:
                    raise Flaw("second annotations", f"image {picture.id} has two annotations, expected one")
                seen.add(picture.id)
                pictures[picture.id] = None
                picture.png, infos = self._png_and_infos(entry)
            except (ValueError, FileNotFoundError) as problem:
                self._reject(name, problem)
                continue
            self._add_segments(infos, picture)
            pictures[picture.id] = picture
        for number, picture in pictures.items():
            if picture is not None and number not in seen:
                pictures[number] = None
                flaw = Flaw("images without an annotation", f"image {number} has no annotation")
                self._reject(picture.name, flaw)

    def _png_and_infos(self, entry: dict[str, Any]) -> tuple[Path, list[Any]]:
        png, infos = self.segments / _inside(text(entry, "file_name")), entry.get("segments_info")
        if not png.is_file():
            raise MissingFileError(f"no such segment PNG: {png}")
        if not isinstance(infos, list):
            raise Flaw("entries without segments_info", f"segments_info is {infos!r}, expected a list")
        return png, infos

    def _add_segments(self, infos: list[Any], picture: Picture) -> None:
        seen = {0}
        for info in infos:
            try:
                number = whole(info, "id", self.repairs)
                if number in seen:
                    reason = "the id is given twice" if number else "id 0 means void; segments count from 1"
                    raise Flaw("segment ids given twice", reason)
                seen.add(number)
                picture.objects.append(Segment(number, self._label(info), flag(info, "iscrowd", self.repairs, 0)))
            except Flaw as problem:
                self._reject(picture.name, Flaw(problem.kind, f"segment {id_of(info)}: {problem}"))

    def segment_ids(self, picture: Picture) -> NDArray[np.int32]:
        """(H, W) ids of the segments in a picture's PNG, 0 for none.

        Raises:
            ValueError: it cannot be read, or has another size than the picture.
        """
        assert picture.png is not None
        red, green, blue = np.asarray(self._load_sized(picture.png, picture), np.int32).transpose(2, 0, 1)
        return red + 256 * green + 65536 * blue

    def _target(self, picture: Picture) -> Target:
        ids = self.segment_ids(picture)
        present = set(np.unique(ids).tolist()) - {0}
        declared: list[Segment] = picture.objects
        objects = [segment for segment in declared if segment.id in present]
        lost = {segment.id for segment in declared} - present
        stray = present - {segment.id for segment in declared}
        for numbers, reason in ((lost, f"have no pixel in {picture.png}"), (stray, "are in the PNG, not in the JSON")):
            if numbers:
                self._leave_out_late(picture, f"segments {few(sorted(numbers))} {reason}")
        order = np.array([segment.id for segment in objects], np.int32)
        masks = ids == order[:, None, None]  # (S, H, W)
        return as_target(picture, objects, boxes_around(masks), masks.sum((1, 2)).astype(np.float32), masks)


def _inside(name: str) -> str:
    """The name, unless it leads out of the folder that it is looked for in."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise Flaw(
            "files outside the folder", f"file_name {name!r} leads out of the set's folder; expected a name inside it"
        )
    return name
