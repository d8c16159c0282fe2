"""Measures of detection, semantic and panoptic segmentation, gathered image by image.

Each measure is filled by `add`, read by `compute` and `per_class`, and put together over processes by `state` and
`merge`: what `state` returns can be pickled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vankit.errors import UserError

IGNORED = 255  # label of unlabelled pixels in semantic maps

_COCO_KINDS = {"box": "bbox", "mask": "segm"}
_IOU_50, _IOU_75 = 0, 5  # of COCO's thresholds 0.5, 0.55, ..., 0.95
_AREAS = {"s": 1, "m": 2, "l": 3}  # of COCO's area ranges; 0 is all


class DetectionMeasure:
    """COCO's average precision of boxes and masks.

    Source: cocodataset.org, Detection Evaluation; computed by faster_coco_eval. Crowds are ignored, objects are small,
    medium or large by their annotated area (bounds 32² and 96² px), and of each image's detections the 100 best of a
    class count. A detection's own area is that of its box for box AP, that of its mask for mask AP. Equal scores
    rank in the order of `add`.

    Args:
        classes: names, in label order.
        masks: measure masks too; they are kept run-length encoded.
    """

    def __init__(self, classes: Sequence[str], masks: bool = False) -> None:
        self.classes = list(classes)
        self.kinds = ("box", "mask") if masks else ("box",)
        self._images: list[dict[str, Any]] = []
        self._precision: dict[str, NDArray[np.float64]] = {}

    def add(self, truth: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take in one image.

        Args:
            truth: `boxes` (N, 4) float x1, y1, x2, y2 in px; `labels` (N,) int from 0; `masks` (N, H, W) bool where
                masks are measured; optionally `iscrowd` (N,) bool and `area` (N,) float in px², by default the masks'
                or else the boxes' own.
            result: `boxes` (M, 4), `labels` (M,), `scores` (M,) float, `masks` (M, H, W) bool where masks are measured.

        Raises:
            ValueError: an entry is missing, of the wrong shape, not finite, or a label is not a class.
        """
        masks = ("masks",) if "mask" in self.kinds else ()
        optional = tuple(name for name in ("iscrowd", "area") if truth.get(name) is not None)
        truths = self._checked(truth, "truth", (*masks, *optional))
        results = self._checked(result, "result", (*masks, "scores"))
        size = results["masks"].shape[1:] if masks else (0, 0)
        if masks and truths["masks"].shape[1:] != size:
            raise UserError(
                f"masks of the truth are {truths['masks'].shape[1:]} pixels, those of the result {size}: "
                "expected both in the same image's pixels"
            )
        columns = {"truth": _coco_columns(truths), "result": _coco_columns(results)}
        self._images.append({"height": size[0], "width": size[1], **columns})
        self._precision.clear()

    def state(self) -> list[dict[str, Any]]:
        """All that was added, for `merge`."""
        return list(self._images)

    def merge(self, state: list[dict[str, Any]]) -> None:
        """Add what another process's measure of the same classes has gathered."""
        self._images += state
        self._precision.clear()

    def compute(self) -> dict[str, float]:
        """Average precision over classes, 0 to 1.

        Returns:
            `box AP` (mean over IoU 0.5 to 0.95), `box AP50`, `box AP75`, `box APs`, `box APm`, `box APl`, and the same
            for `mask`; NaN where there are no such objects.
        """
        measures = {}
        for kind in self.kinds:
            precision = self._evaluated(kind)
            measures[f"{kind} AP"] = _average_precision(precision[..., 0])
            measures[f"{kind} AP50"] = _average_precision(precision[_IOU_50, ..., 0])
            measures[f"{kind} AP75"] = _average_precision(precision[_IOU_75, ..., 0])
            measures |= {f"{kind} AP{name}": _average_precision(precision[..., i]) for name, i in _AREAS.items()}
        return measures

    def per_class(self) -> list[dict[str, Any]]:
        """A row per class: `class`, `objects` (that are not crowds), `box AP` and `mask AP` (NaN without objects)."""
        objects = np.zeros(len(self.classes), np.int64)
        for image in self._images:
            truth = image["truth"]
            labels = truth["category_id"][~truth["iscrowd"].astype(bool)]
            objects += np.bincount(labels, minlength=len(self.classes))
        precision = {kind: self._evaluated(kind) for kind in self.kinds}
        return [
            {"class": name, "objects": int(objects[i])}
            | {f"{kind} AP": _average_precision(precision[kind][:, :, i, 0]) for kind in self.kinds}
            for i, name in enumerate(self.classes)
        ]

    def curves(self) -> NDArray[np.float64]:
        """Precision of boxes at IoU 0.5, (classes, 101), at recalls 0, 0.01, …, 1; NaN for a class without objects.

        It is COCO's: at a recall, the highest precision at that recall or a higher one; their mean is the class's AP50.
        """
        precision = self._evaluated("box")[_IOU_50, ..., 0].T  # (classes, recalls)
        return np.where(precision > -1, precision, np.nan)

    def _checked(self, given: Mapping[str, Any], what: str, further: Sequence[str]) -> dict[str, NDArray[Any]]:
        names = ("boxes", "labels", *further)
        if missing := [name for name in names if name not in given]:
            raise UserError(f"{what} has no {' and no '.join(missing)}: expected {', '.join(names)}")
        arrays = {name: np.asarray(given[name]) for name in names}
        count = arrays["labels"].size
        for name, array in arrays.items():
            dimensions = {"boxes": 2, "masks": 3}.get(name, 1)
            if array.ndim != dimensions or len(array) != count or (name == "boxes" and array.shape[1] != 4):
                raise UserError(
                    f"{name} of the {what} are {array.shape}: expected (N, 4) boxes, (N, H, W) masks "
                    f"and (N,) of all others, with the {count} objects of labels"
                )
            if name in ("boxes", "scores", "area") and not np.isfinite(array).all():
                raise UserError(f"{name} of the {what} are not all finite: leave such objects out")
        _check_labels(arrays["labels"], len(self.classes), f"labels of the {what}")
        return arrays

    def _evaluated(self, kind: str) -> NDArray[np.float64]:
        """Precisions (IoU thresholds, recalls, classes, areas); -1 where there are no objects."""
        if kind not in self._precision:
            from faster_coco_eval import COCO, COCOeval_faster

            truth, result = (
                COCO(self._dataset(side, kind), print_function=_say_nothing) for side in ("truth", "result")
            )
            evaluation = COCOeval_faster(truth, result, _COCO_KINDS[kind], print_function=_say_nothing)
            evaluation.evaluate()
            evaluation.accumulate()
            self._precision[kind] = np.asarray(evaluation.eval["precision"])[..., -1]  # at 100 detections
        return self._precision[kind]

    def _dataset(self, side: str, kind: str) -> dict[str, Any]:
        annotations: list[dict[str, Any]] = []
        for i, image in enumerate(self._images):
            columns = dict(image[side])
            if side == "result" and kind == "mask":
                columns["area"] = _mask_areas(columns["segmentation"])
            rows = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
            for row in rows:
                # 0 is faster_coco_eval's sign of an unmatched object, so ids start at 1
                identity = {"id": len(annotations) + 1, "image_id": i}
                annotations.append(identity | dict(zip(columns, row, strict=True)))
        return {
            "images": [{"id": i, "height": im["height"], "width": im["width"]} for i, im in enumerate(self._images)],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes)],
        }


class SegmentationMeasure:
    """Intersection over union and accuracy of semantic maps, over the pixels of all images together.

    Args:
        classes: names, in label order; at most 255, as 255 marks unlabelled pixels.

    Raises:
        ValueError: there are more classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if len(classes) > IGNORED:
            raise UserError(f"{len(classes)} classes: expected at most {IGNORED}, the label of unlabelled pixels")
        self.classes = list(classes)
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)  # (true, predicted)

    def add(self, truth: NDArray[Any], predicted: NDArray[Any]) -> None:
        """Take in one image.

        Args:
            truth: (H, W) int, class from 0; 255 where unlabelled.
            predicted: (H, W) int, class from 0.

        Raises:
            ValueError: the shapes differ, or a label is not a class.
        """
        if truth.shape != predicted.shape:
            raise UserError(f"truth is {truth.shape}, prediction {predicted.shape}: expected one (H, W) for both")
        count = len(self.classes)
        labelled = truth != IGNORED
        _check_labels(truth[labelled], count, "labels of the truth")
        _check_labels(predicted, count, "predicted labels")
        pairs = truth[labelled].astype(np.int64) * count + predicted[labelled]
        self.confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)

    def state(self) -> NDArray[np.int64]:
        """The (classes, classes) counts of pixels, for `merge`."""
        return self.confusion.copy()

    def merge(self, state: NDArray[np.int64]) -> None:
        """Add what another process's measure of the same classes has gathered."""
        self.confusion += state

    def compute(self) -> dict[str, float]:
        """Measures over classes, 0 to 1, NaN without labelled pixels.

        Returns:
            `mIoU`, the mean IoU of the classes that occur in truth or prediction; `aAcc`, the part of the pixels that
            are right; `mAcc`, the mean accuracy of the classes that occur in the truth.
        """
        iou, accuracy = self._per_class()
        right, pixels = self.confusion.trace(), self.confusion.sum()
        return {"mIoU": _mean(iou), "aAcc": float(right / pixels) if pixels else np.nan, "mAcc": _mean(accuracy)}

    def per_class(self) -> list[dict[str, Any]]:
        """A row per class: `class`, `IoU`, `accuracy` (NaN where the class does not occur), `pixels` in the truth."""
        iou, accuracy = self._per_class()
        columns = (self.classes, iou.tolist(), accuracy.tolist(), self.confusion.sum(1).tolist())
        return [
            dict(zip(("class", "IoU", "accuracy", "pixels"), row, strict=True)) for row in zip(*columns, strict=True)
        ]

    def _per_class(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        right, true, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return _ratio(right, true + predicted - right), _ratio(right, true)


class PanopticMeasure:
    """Panoptic quality, and its factors segmentation and recognition quality.

    Source: Kirillov et al., Panoptic Segmentation, arXiv:1801.00868, section 4; void and crowds as in panopticapi.
    A predicted and a true segment of one class match where their IoU, without void pixels, is above 0.5. An unmatched
    prediction that lies by more than half in void and in crowds of its class is not counted, and neither is a crowd.
    Segments without pixels do not exist.

    Args:
        classes: names, in label order.
        things: per class, whether it is countable.

    Raises:
        ValueError: the two differ in length.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[bool]) -> None:
        if len(classes) != len(things):
            raise UserError(f"{len(classes)} classes, but {len(things)} things: expected one flag per class")
        self.classes = list(classes)
        self.things = np.asarray(things, bool)
        self._counts = np.zeros((len(classes), 4))  # sum of matched IoU, TP, FP, FN

    def add(self, truth: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take in one image.

        Args:
            truth: `segments` (H, W) int, 0 for void, i + 1 for segment i; `labels` (S,) int from 0; optionally
                `iscrowd` (S,) bool.
            result: `segments` (H, W) and `labels` (R,) likewise.

        Raises:
            ValueError: the maps differ in shape, show a segment without a label, or a label is not a class.
        """
        true_labels, found_labels = np.asarray(truth["labels"], int), np.asarray(result["labels"], int)
        crowd = truth.get("iscrowd")
        crowd = np.zeros(len(true_labels), bool) if crowd is None else np.asarray(crowd, bool)
        if crowd.shape != true_labels.shape:
            raise UserError(f"iscrowd is {crowd.shape}, labels {true_labels.shape}: expected one flag per segment")
        _check_labels(true_labels, len(self.classes), "labels of the truth")
        _check_labels(found_labels, len(self.classes), "labels of the result")
        shared = _shared_pixels(truth["segments"], result["segments"], len(true_labels), len(found_labels))

        same_class = true_labels[:, None] == found_labels  # (S, R)
        true_area, found_area = shared.sum(1)[1:], shared.sum(0)[1:]
        void = shared[0, 1:]  # (R,)
        iou = _ratio(shared[1:, 1:], true_area[:, None] + (found_area - void) - shared[1:, 1:])  # (S, R)
        matched = same_class & ~crowd[:, None] & (iou > 0.5)
        in_crowd = (shared[1:, 1:] * (same_class & crowd[:, None])).sum(0)  # (R,)
        false = ~matched.any(0) & (found_area > 0) & (2 * (void + in_crowd) <= found_area)
        missed = ~matched.any(1) & (true_area > 0) & ~crowd
        hit, _ = matched.nonzero()
        np.add.at(self._counts, (true_labels[hit], 0), iou[matched])
        np.add.at(self._counts, (true_labels[hit], 1), 1)
        np.add.at(self._counts, (found_labels[false], 2), 1)
        np.add.at(self._counts, (true_labels[missed], 3), 1)

    def state(self) -> NDArray[np.float64]:
        """The (classes, 4) sums of matched IoU, TP, FP and FN, for `merge`."""
        return self._counts.copy()

    def merge(self, state: NDArray[np.float64]) -> None:
        """Add what another process's measure of the same classes has gathered."""
        self._counts += state

    def compute(self) -> dict[str, float]:
        """Means over the classes that occur in truth or result, 0 to 1, NaN where there are none.

        Returns:
            `PQ`, `SQ` and `RQ`, and each with ` things` and with ` stuff` for those classes alone.
        """
        qualities = self._qualities()
        chosen = {"": self.things | True, " things": self.things, " stuff": ~self.things}
        return {f"{name}{of}": _mean(values[rows]) for of, rows in chosen.items() for name, values in qualities.items()}

    def per_class(self) -> list[dict[str, Any]]:
        """A row per class: `class`, `PQ`, `SQ`, `RQ` (NaN where it does not occur), and the counts `TP`, `FP`, `FN`."""
        qualities = self._qualities()
        return [
            {"class": name}
            | {quality: float(values[i]) for quality, values in qualities.items()}
            | dict(zip(("TP", "FP", "FN"), self._counts[i, 1:].astype(int).tolist(), strict=True))
            for i, name in enumerate(self.classes)
        ]

    def _qualities(self) -> dict[str, NDArray[np.float64]]:
        iou, tp, fp, fn = self._counts.T
        segments = tp + (fp + fn) / 2
        segmentation = np.where(segments > 0, iou / np.maximum(tp, 1), np.nan)
        return {"PQ": _ratio(iou, segments), "SQ": segmentation, "RQ": _ratio(tp, segments)}


def _coco_columns(objects: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    x1, y1, x2, y2 = objects["boxes"].astype(np.float64).T
    columns: dict[str, Any] = {"bbox": np.stack([x1, y1, x2 - x1, y2 - y1], 1)}
    columns["category_id"] = objects["labels"].astype(np.int64)
    columns["area"] = (x2 - x1) * (y2 - y1)
    if "masks" in objects:
        from faster_coco_eval import mask

        columns["segmentation"] = mask.encode(np.asfortranarray(objects["masks"].transpose(1, 2, 0), np.uint8))
    if "scores" in objects:
        return columns | {"score": objects["scores"].astype(np.float64)}
    if "masks" in objects:
        columns["area"] = _mask_areas(columns["segmentation"])
    if "area" in objects:
        columns["area"] = objects["area"].astype(np.float64)
    return columns | {"iscrowd": objects.get("iscrowd", np.zeros(len(x1))).astype(np.int64)}


def _mask_areas(encoded: list[dict[str, Any]]) -> NDArray[np.float64]:
    from faster_coco_eval import mask

    return np.asarray(mask.area(encoded), np.float64)


def _shared_pixels(truth: ArrayLike, result: ArrayLike, true: int, found: int) -> NDArray[np.int64]:
    """Pixels that true segment i and found segment j share, (true + 1, found + 1); 0 is void."""
    maps = np.asarray(truth), np.asarray(result)
    if maps[0].shape != maps[1].shape:
        raise UserError(f"segments of the truth are {maps[0].shape}, of the result {maps[1].shape}: expected the same")
    _check_labels(maps[0], true + 1, "segments of the truth")
    _check_labels(maps[1], found + 1, "segments of the result")
    pairs = maps[0].astype(np.int64) * (found + 1) + maps[1]
    return np.bincount(pairs.ravel(), minlength=(true + 1) * (found + 1)).reshape(true + 1, found + 1)


def _check_labels(labels: NDArray[Any], count: int, what: str) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        raise UserError(f"{what} are {labels.min()} to {labels.max()}: expected 0 to {count - 1}")


def _average_precision(precision: NDArray[np.float64]) -> float:
    return _mean(np.where(precision > -1, precision, np.nan))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


def _say_nothing(*_: object) -> None:
    pass
