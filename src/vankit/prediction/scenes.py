"""Detection, semantic and panoptic segmentation of pictures with a trained network. PyTorch is loaded with a network of
its own, not for an exported folder."""

import json
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.images import MAX_PIXELS, ImageLike, several, source_name, to_image
from vankit.data.walk import begin, find_inputs
from vankit.deploy.dense import DenseFolder
from vankit.deploy.folder import is_exported
from vankit.deploy.kept import Kept, collect, kept_whole
from vankit.deploy.opening import Network, open_network
from vankit.engines.choose import on_torch
from vankit.engines.processes import avoid_lost_threads
from vankit.errors import UserError, reason_of
from vankit.files import check_folder, replacing, writing
from vankit.locks import check_free, held, making
from vankit.prediction.request import check_request
from vankit.prediction.tables import is_table
from vankit.prediction.tiles import DEFAULT_OVERLAP, find_in_tiles
from vankit.prediction.videos import predict_video, video_among
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.results import Arrays, Detections, Failure, PanopticMap, SemanticMap
from vankit.tasks.segment import Test

logger = logging.getLogger(__name__)

_MOST = 1000  # objects of every score: those of 12 megapixels have masks of 12 GB

Result = Detections | SemanticMap | PanopticMap


class DensePredictor:
    """A detector or segmenter ready for use.

    Args:
        checkpoint: a file that `vankit train` wrote, a folder that `vankit export` wrote, which runs without PyTorch,
            or what `vankit.deploy.opening.open_network` returned.
        score: lowest score of the objects returned, 0 to 1; for detectors.
        test: for semantic segmentation, see `vankit.tasks.inference.segment_logits`; folders have single.
        engine: what runs the whole network of a folder, or of a checkpoint that is kept (see `vankit.deploy.kept`), or
            else the backbone of a checkpoint, whose head runs on PyTorch; see `vankit.Predictor`.
        precision: float32 or bf16 of what the engine runs; 'auto' is float32.
        device: torch's name, or 'auto' for CUDA where there is one.
        max_pixels: of the largest image that is decoded.
        tile: side in pixels of the tiles in which a detector also looks at larger pictures, 32 or more; None for none.
        overlap: of the tiles, 0 to 0.9, see `vankit.prediction.tiles.find_in_tiles`; None for 0.2.

    Attributes:
        task: detect, segment or panoptic.
        head: the head's name.
        masks: whether it gives a mask per object.
        classes: names by label.
        category_ids: the training data's numbers of the classes, by label.
        description: all that the network is.

    Raises:
        FileNotFoundError, ValueError: the file is missing or no such checkpoint, or an option is out of range.
        ImportError: the head needs transformers.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] | Network,
        *,
        score: float = 0.3,
        test: Test = "single",
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        max_pixels: int = MAX_PIXELS,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> None:
        check_request(
            engine=engine, precision=precision, device=device, max_pixels=max_pixels, score=score, tile=tile,
            overlap=overlap,
        )  # fmt: skip
        if test not in get_args(Test):
            raise UserError(f"test is {test!r}, expected one of {', '.join(get_args(Test))}")
        avoid_lost_threads()
        opened = checkpoint if isinstance(checkpoint, Network) else _opened(checkpoint, engine, device)
        if not opened.dense:
            raise UserError(
                f"{opened.source} is not a checkpoint of a detector or segmenter: expected best.safetensors of vankit "
                "train, or a folder of vankit export"
            )
        self.description = opened.description
        if test != "single" and self.description.task != "segment":
            raise UserError(
                f"test is {test!r}, which is only for segmentation: {opened.source} is a {self.description.head}"
            )
        if tile is not None and self.description.task != "detect":
            raise UserError(
                f"tile is {tile}, which is only for detectors: {opened.source} is a {self.description.head}"
            )
        options = {"engine": engine, "precision": precision, "device": device}
        self._on_pytorch: Callable[[], Any] | None = None
        self._run: Any
        if opened.exported is not None:
            self._run = _of_folder(opened, score, test, **options)
        elif (kept := _kept(opened, score, test, **options)) is not None:
            self._run, self._on_pytorch = DenseFolder(kept), partial(_on_pytorch, opened, score, test, **options)
        else:
            self._run = _on_pytorch(opened, score, test, **options)
        self.task, self.head = self.description.task, self.description.head
        self.masks = self._run.masks
        self.classes, self.things = list(self.description.classes), list(self.description.things)
        self.category_ids = list(self.description.category_ids)
        self.score, self.test, self.max_pixels = score, test, max_pixels
        self.tile, self.overlap = tile, DEFAULT_OVERLAP if overlap is None else overlap

    @property
    def network(self) -> Any:
        """The PyTorch module in eval mode, see `vankit.heads`, which runs from now on; None of an exported folder."""
        if self._on_pytorch is not None:
            self._run, self._on_pytorch = self._on_pytorch(), None
        return getattr(self._run, "network", None)

    def results(self, picture: NDArray[np.uint8]) -> Arrays:
        """Run the network.

        Args:
            picture: (H, W, 3), RGB.

        Returns:
            What is in the picture, in its pixels, objects of every score; see `vankit.tasks.dense`. With tiles, the
            1,000 best ones at most.

        Raises:
            ValueError: the network's output is not finite.
        """
        if self.tile is None:
            return self._results(picture)
        image = Image.fromarray(picture)
        found = find_in_tiles(image, partial(self._scene, ""), self.tile, self.overlap, self.score, _MOST)
        masks = {} if found.masks is None else {"masks": found.masks}
        return {"boxes": found.boxes, "labels": found.labels, "scores": found.scores, **masks}

    def _results(self, picture: NDArray[np.uint8], score: float = 0.0) -> Arrays:
        avoid_lost_threads()
        results: Arrays = self._run(picture, score)
        return results

    def __call__(self, image: ImageLike) -> Result:
        """What is in one picture.

        Args:
            image: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W)
                grey.

        Raises:
            FileNotFoundError, ValueError: the image cannot be used, or the network's output is not finite.
        """
        return self.find(source_name(image), to_image(image, self.max_pixels))

    def find(self, source: str, rgb: Image.Image, score: float | None = None) -> Result:
        """What is in a picture that is decoded already.

        Args:
            source: its name.
            rgb: as `vankit.data.images.to_image` gives it.
            score: lowest one of the objects, no lower than the predictor's; None is that.
        """
        find: Callable[[Image.Image], Any] = partial(self._seen, source, self.score if score is None else score)
        return find(rgb) if self.tile is None else find_in_tiles(rgb, find, self.tile, self.overlap)

    def _seen(self, source: str, score: float, rgb: Image.Image) -> Result:
        scene = self._scene(source, rgb, score)
        return scene.above(score) if isinstance(scene, Detections) else scene

    def _scene(self, source: str, rgb: Image.Image, score: float = 0.0) -> Any:
        """What one look finds."""
        return EVALUATORS[self.task].scene(source, self.classes, self.things, self._results(np.asarray(rgb), score))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[tuple[Result | Failure, Image.Image | None]]:
        """What is in each picture, with the picture; one that fails gives a `Failure` and None."""
        for image in several(images):
            source = source_name(image)
            try:
                rgb = to_image(image, self.max_pixels)
                found = self.find(source, rgb)
            except Exception as error:  # the other pictures go on
                yield Failure(source, reason_of(error, source)), None
                continue
            yield found, rgb


def _opened(path: str | PathLike[str], engine: str, device: str) -> Network:
    return open_network(path) if is_exported(path) else open_network(checkpoint=path, engine=engine, device=device)


def _on_pytorch(opened: Network, score: float, test: Test, **options: Any) -> Any:
    from vankit.prediction.networks import DenseNetwork

    return DenseNetwork(opened, score, test, **options)


def _kept(opened: Network, score: float, test: Test, engine: str, precision: str, device: str) -> Kept | None:
    """The whole network of a checkpoint, if it is kept and has what is asked for; what might be is collected."""
    asked = test == "single" and engine in ("auto", "openvino") and precision in ("auto", "float32")
    if not asked or on_torch(engine, device):
        return None
    kept = kept_whole(opened)
    if kept is None:
        collect(opened, score)
    elif opened.description.task == "detect" and score < kept.lowest_score:
        return None
    return kept


def _of_folder(opened: Network, score: float, test: Test, **options: Any) -> DenseFolder:
    assert opened.exported is not None
    if test != "single":
        raise UserError(f"test is {test!r}, and an exported folder has single: use the checkpoint it was made from")
    lowest = opened.exported.facts.get("lowest_score", 0)
    if opened.description.task == "detect" and isinstance(lowest, float) and score < lowest:
        logger.warning("score (--score) is %g, and %s gives objects from %g on", score, opened.source, lowest)
    return DenseFolder(opened.exported, **options)


def iter_scenes(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    checkpoint: str | PathLike[str] | Network,
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> Generator[Result | Failure, None, None]:
    """Detect or segment what is in image files, one at a time.

    Pictures are read, and results written, as the iterator is consumed.

    Args:
        inputs: files, folders (searched through) and glob patterns.
        checkpoint: see `DensePredictor`.
        output: folder for a picture per image (`NAME.png`, drawn on) and predictions.json in COCO's results format of
            the task, to which `file_name` is added; for panoptic also the PNGs that belong to it, in `panoptic/`.
            `image_id` is the number in a file name of COCO's kind (twelve digits), else the image's place in the list,
            from 1. What the folder holds is not an input. Of a single video it is a video, see
            `vankit.prediction.videos.predict_video`.
        options: further arguments of `DensePredictor`.

    Yields:
        `Detections`, a `SemanticMap` or a `PanopticMap` per image or frame, in order; a `Failure` for an image that
        failed.

    Raises:
        FileNotFoundError: a folder or pattern has no images; raised after the others are answered and written. Where
            there are no others, nothing is written.
        ValueError: an input lies in the output folder, the output cannot be written, someone else is writing it, or see
            `DensePredictor`.
    """
    video = video_among(inputs, output, options.get("max_pixels", MAX_PIXELS))
    if video is not None and output is not None:
        yield from predict_video(video, output, DensePredictor(checkpoint, **options))
        return
    if output is not None:
        if is_table(output):
            raise UserError(f"a detector or segmenter writes a folder of pictures: expected one, not {output}")
        check_folder(output)
        check_free(output)
    sources = begin(find_inputs(inputs, output))
    predictor = DensePredictor(checkpoint, **options)
    if output is None:
        yield from (result for result, _ in predictor.stream(sources))
        return
    folder = Path(output)
    with making(folder), held(folder), _Folder(folder, predictor) as written:
        for place, (result, image) in enumerate(predictor.stream(sources), 1):
            if image is not None:
                written.add(result, image, place)
            yield result


class _Folder:
    """The output folder of `iter_scenes`; predictions.json grows as it goes, and is whole at the end."""

    def __init__(self, folder: Path, predictor: DensePredictor) -> None:
        self.folder, self.category_ids = folder, predictor.category_ids
        self.panoptic = predictor.task == "panoptic"
        self.names: set[str] = set()
        self.separator = ""

    def __enter__(self) -> "_Folder":
        path = self.folder / "predictions.json"
        with writing(path):
            (self.folder / "panoptic" if self.panoptic else self.folder).mkdir(exist_ok=True)
            self.file = path.open("w", encoding="utf-8")
        self.file.write('{"annotations": [' if self.panoptic else "[")
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self.file.name), self.file:
            self.file.write("\n]}\n" if self.panoptic else "\n]\n")

    def add(self, result: Any, image: Image.Image, place: int) -> None:
        stem = Path(result.source).stem
        image_id = int(stem) if re.fullmatch(r"[0-9]{12}", stem) else place
        name = stem
        while name in self.names:
            name = f"{name}-{place}"
        self.names.add(name)
        _save(result.draw(image), self.folder / f"{name}.png")
        if isinstance(result, PanopticMap):
            _save(result.to_png(), self.folder / "panoptic" / f"{name}.png")
            rows = [result.to_coco(image_id, self.category_ids, f"{name}.png")]
        else:
            file_name = Path(result.source).name.encode("utf-8", "backslashreplace").decode()
            rows = [{**row, "file_name": file_name} for row in result.to_coco(image_id, self.category_ids)]
        with writing(self.file.name):
            for row in rows:
                self.file.write(f"{self.separator}\n{json.dumps(row, allow_nan=False)}")
                self.separator = ","


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as partial:
        image.save(partial, "PNG")
