"""Detection, semantic and panoptic segmentation of pictures with a trained network."""

import copy
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from timm.models import FeatureListNet
from torch import Tensor, nn

from vankit.data.images import MAX_PIXELS, ImageLike, several, source_name, to_image
from vankit.data.walk import begin, find_inputs
from vankit.deploy.opening import Network, open_network
from vankit.engines.base import Engine
from vankit.engines.choose import device_for, engine_for
from vankit.engines.processes import PerProcess, avoid_lost_threads
from vankit.engines.torch import TorchEngine
from vankit.errors import UserError, check_output, reason_of
from vankit.files import check_folder, replacing, writing
from vankit.locks import check_free, held, making
from vankit.models.portable import Portable
from vankit.prediction.films import film_among, predict_film
from vankit.prediction.request import check_request
from vankit.prediction.tables import is_table
from vankit.prediction.tiles import find_in_tiles
from vankit.tasks.dense import EVALUATORS, infer
from vankit.tasks.results import Detections, Failure, PanopticMap, SemanticMap
from vankit.tasks.segment import Test

_EXAMPLE = (3, 96, 128)  # the exported backbone takes any other size too

Result = Detections | SemanticMap | PanopticMap


class DensePredictor:
    """A detector or segmenter ready for use.

    Args:
        checkpoint: a file that `vankit train` wrote, or what `vankit.deploy.opening.open_network` returned.
        score: lowest score of the objects returned, 0 to 1; for detectors.
        test: for semantic segmentation, see `vankit.tasks.segment.segment_logits`.
        engine: what runs the backbone, see `vankit.Predictor`; the head runs on PyTorch.
        precision: float32 or bf16, of the backbone; 'auto' is float32.
        device: torch's name, or 'auto' for CUDA where there is one.
        max_pixels: of the largest image that is decoded.
        tile: side in pixels of the tiles in which a detector also looks at larger pictures, 32 or more; None for none.
        overlap: of the tiles, 0 to 0.9, see `vankit.prediction.tiles.find_in_tiles`.

    Attributes:
        network: in eval mode, see `vankit.heads`.
        task: detect, segment or panoptic.
        head: the head's name.
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
        overlap: float = 0.2,
    ) -> None:
        check_request(
            engine=engine, precision=precision, device=device, max_pixels=max_pixels, score=score, tile=tile,
            overlap=overlap,
        )  # fmt: skip
        if test not in get_args(Test):
            raise UserError(f"test is {test!r}, expected one of {', '.join(get_args(Test))}")
        avoid_lost_threads()
        opened = checkpoint if isinstance(checkpoint, Network) else open_network(checkpoint=checkpoint)
        self.description, network = opened.description, copy.deepcopy(opened.module)
        if not opened.dense or network is None:
            raise UserError(
                f"{opened.source} is not a checkpoint of a detector or segmenter: expected best.safetensors of vankit "
                "train"
            )
        if test != "single" and self.description.task != "segment":
            raise UserError(
                f"test is {test!r}, which is only for segmentation: {opened.source} is a {self.description.head}"
            )
        if tile is not None and self.description.task != "detect":
            raise UserError(
                f"tile is {tile}, which is only for detectors: {opened.source} is a {self.description.head}"
            )
        if precision == "int8":
            raise UserError("detectors and segmenters have no int8: leave out precision (--precision), or use bf16")
        device = device_for(engine, device)
        self.device = torch.device(device)
        _put_backbone_on(network, engine, precision, device)
        for module in network.modules():
            if isinstance(module, _Backbone | FeatureListNet):
                module.register_forward_hook(_check_maps)
            if hasattr(module, "score_thresh"):
                _keep_from(module, score)
        self.network = self._placed(network)
        self.task, self.head = self.description.task, self.description.head
        self.classes, self.things = list(self.description.classes), list(self.description.things)
        self.category_ids = list(self.description.category_ids)
        self.score, self.test, self.max_pixels = score, test, max_pixels
        self.tile, self.overlap = tile, overlap

    def _placed(self, network: nn.Module) -> nn.Module:
        return network.to(memory_format=torch.channels_last).to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"network": Portable(self.network)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.network = self._placed(self.network)

    def results(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Run the network.

        Args:
            images: float32 (3, H, W), RGB, 0 to 1, of any sizes.

        Returns:
            A dict per image, in its pixels, see `vankit.heads`; objects of every score.

        Raises:
            ValueError: the network's output is not finite.
        """
        avoid_lost_threads()
        with torch.inference_mode():
            return infer(self.network, [image.to(self.device) for image in images], self.description, self.test)

    def __call__(self, image: ImageLike) -> Result:
        """What is in one picture.

        Args:
            image: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W)
                grey.

        Raises:
            FileNotFoundError, ValueError: the image cannot be used, or the network's output is not finite.
        """
        return self._found(source_name(image), to_image(image, self.max_pixels))

    def _found(self, source: str, rgb: Image.Image) -> Result:
        find: Callable[[Image.Image], Any] = partial(self._seen, source)
        return find(rgb) if self.tile is None else find_in_tiles(rgb, find, self.tile, self.overlap)

    def _seen(self, source: str, rgb: Image.Image) -> Result:
        avoid_lost_threads()
        x = torch.from_numpy(np.array(rgb)).permute(2, 0, 1) / 255
        scene: Result = EVALUATORS[self.task].scene(source, self.classes, self.things, self.results([x])[0])
        return scene.above(self.score) if isinstance(scene, Detections) else scene

    def stream(self, images: Iterable[ImageLike]) -> Iterator[tuple[Result | Failure, Image.Image | None]]:
        """What is in each picture, with the picture; one that fails gives a `Failure` and None."""
        for image in several(images):
            source = source_name(image)
            try:
                rgb = to_image(image, self.max_pixels)
                found = self._found(source, rgb)
            except Exception as error:  # the other pictures go on
                yield Failure(source, reason_of(error, source)), None
                continue
            yield found, rgb


def _keep_from(detector: Any, score: float) -> None:
    """torchvision's detectors leave out what scores 0.05 or less by themselves."""
    detector.score_thresh = min(detector.score_thresh, score)


class _Backbone(nn.Module):
    """A VAN's feature maps from an engine that is not PyTorch's.

    Args:
        engine: made of the VAN already.
        make: an engine of it, for other processes.
    """

    features: FeatureListNet

    def __init__(self, features: FeatureListNet, engine: Engine, make: Callable[[nn.Module], Engine]) -> None:
        super().__init__()
        self.feature_info, self.return_layers = features.feature_info, features.return_layers
        self.engine, self.make = PerProcess(engine), make
        vars(self)["features"] = features  # not a module of the network, which does not run it

    def forward(self, x: Tensor) -> list[Tensor]:
        engine = self.engine.get(lambda: self.make(self.features))
        return [torch.from_numpy(y) for y in engine.outputs(x.float().contiguous().numpy())]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"features": Portable(self.features)}


def _check_maps(_module: nn.Module, _images: Any, maps: list[Tensor]) -> None:
    """In the results of a detector broken maps would only be missing: their scores are above no threshold."""
    for each in maps:
        check_output(each)


def _put_backbone_on(network: nn.Module, engine: str, precision: str, device: str) -> None:
    if engine == "torch" or (engine == "auto" and device != "cpu"):
        if precision == "bf16":
            raise UserError("bf16 is for engine openvino: leave out precision, or set engine='openvino'")
        return
    make = partial(
        engine_for, input_size=_EXAMPLE, engine=engine, precision=precision, device=device, cached=True, dynamic=True
    )
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FeatureListNet):
                found = make(child)
                if not isinstance(found, TorchEngine):  # else it could not be exported, and stays what it is
                    setattr(parent, name, _Backbone(child, found, make))


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
            from 1. What the folder holds is not an input. Of a single film it is a film, see
            `vankit.prediction.films.predict_film`.
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
    film = film_among(inputs, output)
    if film is not None and output is not None:
        yield from predict_film(film, output, DensePredictor(checkpoint, **options))
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
