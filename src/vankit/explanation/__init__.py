"""What a network looks at: Grad-CAM, LKA attention, the effective receptive field, as figures and arrays."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vankit.data.images import MAX_PIXELS, ImageLike, is_one_image, several, source_name, to_image
from vankit.data.preprocessing import check_img_size
from vankit.data.walk import begin, find_inputs
from vankit.deploy.folder import is_exported
from vankit.deploy.opening import Network, open_network
from vankit.engines.choose import on_torch
from vankit.errors import UserError, reason_of
from vankit.explanation.grad_cam import GradCam
from vankit.explanation.results import Explanation, Method
from vankit.explanation.subjects import ClassMaps
from vankit.files import check_folder, replacing
from vankit.locks import check_free, held, making
from vankit.models.description import Weights
from vankit.prediction.labels import Predictor
from vankit.prediction.request import check_request
from vankit.tasks.results import Failure

if TYPE_CHECKING:
    from torch import nn

MethodName = Literal["grad-cam", "attention", "receptive-field", "statistics"]

_OF_ALL = ("receptive-field", "statistics")  # one explanation, of all images


def explain(
    inputs: ImageLike | Iterable[ImageLike] = (),
    model: "str | PathLike[str] | nn.Module | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> list[Explanation | Failure]:
    """Show what a network looks at.

    Grad-CAM at the last stage of a VAN that classifies, without the options `layer`, `compare` and `img_size`, takes no
    gradients: an engine computes it with the labels, of an exported folder without PyTorch, and of a name or
    checkpoint from the second start on, see `vankit.Predictor.class_maps`.

    Methods:
        grad-cam: where the evidence for a class is (arXiv 1610.02391): ReLU of the layer's channels, weighted by the
            mean gradient of the class's logit; of a detector the score of its best object, of a semantic segmenter the
            mean logit over the class's pixels.
        attention: of every LKA what it multiplies its input by, before sigmoid and gate, as the mean absolute value
            over channels.
        receptive-field: the gradient of the middle unit of a stage with respect to the pixels (arXiv 1701.04128), over
            20 generated inputs or the given images.
        statistics: of every LKA's channels the mean, standard deviation and share of positive values of the attention,
            over images and positions.

    Args:
        inputs: files, folders (searched through), glob patterns, bytes of image files, PIL images, uint8 arrays
            (H, W, 3) in RGB order or (H, W) grey; one or several.
        model, checkpoint: see `vankit.Predictor`; any timm model for grad-cam and receptive-field. The checkpoint alone
            of a detector or segmenter, whose VAN is looked at. Of a VAN without a head for all but grad-cam. An
            exported folder for what takes no gradients.
        output: folder for a PNG per image, or one named after the method with a CSV of its rows. What the folder holds
            is not an input.
        method: see above.
        target: class that grad-cam explains, by name or index, or several; the predicted one of each image if None.
        stage: 1 to 4; the last for grad-cam and all for the others if None. Of other networks than VAN the levels of
            timm's `feature_info`, of which the last is 4.
        layer: name of a module instead of a stage, for grad-cam and receptive-field.
        compare: a further timm model, classifier's checkpoint or network to compare with, or several, for grad-cam and
            receptive-field; each sees its own input size.
        img_size: side in pixels of what `model` sees, instead of its own; VAN takes any.
        pretrained: load public weights (else they are random).
        device: torch's name, or 'auto' for CUDA where there is one.
        max_pixels: of the largest image that is decoded.
        weights: of `checkpoint`, see `vankit.Predictor`.

    Returns:
        An `Explanation` per image, in order, and a `Failure` for one that failed; for receptive-field and statistics
        the failures, then one Explanation over the others.

    Raises:
        FileNotFoundError: a folder or pattern has no images; raised after the others are answered and written.
        ValueError: an option does not fit the method or the network, the output cannot be written, or someone else is
            writing it.
        ImportError: captum, which takes gradients for grad-cam, is not installed.
    """
    return list(iter_explanations(inputs, model, checkpoint, output, **options))


def iter_explanations(
    inputs: ImageLike | Iterable[ImageLike] = (),
    model: "str | PathLike[str] | nn.Module | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    *,
    method: MethodName = "grad-cam",
    target: str | int | Sequence[str | int] | None = None,
    stage: int | None = None,
    layer: str | None = None,
    compare: "str | nn.Module | Sequence[str | nn.Module]" = (),
    img_size: int | None = None,
    pretrained: bool = True,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    weights: Weights | None = None,
) -> Iterator[Explanation | Failure]:
    """`explain`, one image at a time: images are read, and pictures written, as the iterator is consumed."""
    given = [inputs] if is_one_image(inputs) else list(several(inputs, "inputs"))
    others: list[Any] = [compare] if isinstance(compare, str) or not isinstance(compare, Sequence) else list(compare)
    _check(method, given, target, stage, layer, others)
    check_folder(output)
    if output is not None:
        check_free(output)
    check_request(device=device, max_pixels=max_pixels)
    if img_size is not None:
        check_img_size(img_size)
    sources = begin(_sources(given, output))
    of_network = _asked_of_network(method, stage, layer, others, img_size)
    opened: Any = model
    if of_network is None or is_exported(model):
        opened = open_network(model, checkpoint, pretrained, weights=weights, engine="auto", device=device)
        checkpoint = weights = None
    targets = [target] if isinstance(target, str | int) else list(target or ())
    look: Method
    class_maps = _class_maps(opened, of_network, device) if isinstance(opened, Network) else None
    if class_maps is not None:
        look = GradCam([class_maps], targets)
    else:
        from vankit.explanation import methods  # and PyTorch with it
        from vankit.explanation.networks import open_subject

        options: dict[str, Any] = {"device": device, "needs_classes": method == "grad-cam"}
        subjects = [open_subject(opened, checkpoint, pretrained, img_size, weights=weights, **options)]
        if img_size is not None and given and not subjects[0].fixed_size:
            raise UserError(f"img_size is for classifiers, and {subjects[0].name} chooses its own sizes: leave it out")
        for other in others:
            named = other if isinstance(other, str) else None
            subjects.append(open_subject(other, None, pretrained, name=named, **options))
        for place, subject in enumerate(subjects, 1):
            if subject.name in [before.name for before in subjects[: place - 1]]:
                subject.name += f" ({place})"
        if method == "grad-cam":
            look = GradCam(subjects, targets, stage, layer)
        elif method == "attention":
            look = methods.Attention(subjects[0], stage)
        elif method == "receptive-field":
            look = methods.ReceptiveField(subjects, stage, layer, generate=not given)
        else:
            look = methods.Statistics(subjects[0], stage)
    found = _each(sources, look, max_pixels)
    yield from found if output is None else _written(found, Path(output), method)


def _asked_of_network(
    method: str, stage: int | None, layer: object, compare: Sequence[Any], img_size: int | None
) -> str | None:
    """What an option asks for that only the network in PyTorch has; None if the maps of its classes are enough."""
    asked = {
        f"method {method}": method != "grad-cam",
        f"stage {stage}": stage not in (None, 4),
        "`layer`": layer is not None,
        "`compare`": bool(compare),
        "`img_size`": img_size is not None,
    }
    return next((name for name, is_asked in asked.items() if is_asked), None)


def _class_maps(opened: Network, of_network: str | None, device: str) -> ClassMaps | None:
    """By an engine other than PyTorch; None if it will not do.

    Raises:
        ValueError, ImportError: it is a folder, which has nothing else, and it will not.
    """
    name = opened.description.model or opened.source
    if opened.exported is None:
        if not opened.own or on_torch("auto", device) or not opened.class_maps:
            return None
        try:
            return ClassMaps(Predictor(opened, device=device), name)
        except UserError:  # there is no OpenVINO, or not in this process
            return None
    if opened.dense or of_network is not None:
        asked = of_network or f"a {opened.description.head}"
        raise UserError(
            f"{opened.source} is an exported folder, which has no gradients, and {asked} needs the network in PyTorch: "
            "pass the model or its checkpoint"
        )
    return ClassMaps(Predictor(opened, device=device), name)


def _check(
    method: str, inputs: Sequence[Any], target: object, stage: int | None, layer: object, compare: Sequence[Any]
) -> None:
    if method not in get_args(MethodName):
        raise UserError(f"method is {method!r}, expected one of {', '.join(get_args(MethodName))}")
    if not inputs and method != "receptive-field":
        raise UserError(f"method {method} looks at images: pass files, folders or patterns")
    if target is not None and method != "grad-cam":
        raise UserError(f"target is only for method grad-cam: leave it out with {method}")
    if stage is not None and not 1 <= stage <= 4:
        raise UserError(f"stage is {stage}, expected 1 to 4")
    if (layer is not None or compare) and method in ("attention", "statistics"):
        raise UserError(
            f"{'compare' if compare else 'layer'} is only for grad-cam and receptive-field: leave it out with {method}"
        )
    if layer is not None and stage is not None:
        raise UserError("`layer` and `stage` both say where to look: leave out one")
    if layer is not None and compare:
        raise UserError("`layer` names a module of one network: to `compare`, pass a `stage`")


def _sources(given: Sequence[ImageLike], output: str | PathLike[str] | None) -> Iterator[ImageLike]:
    """Pictures as they are, paths as the files they stand for."""
    parts: list[Iterable[ImageLike]] = []
    for _, group in groupby(given, lambda x: isinstance(x, str | PathLike)):
        images = list(group)
        paths = [image for image in images if isinstance(image, str | PathLike)]
        parts.append(find_inputs(paths, output) if paths else images)
    return chain.from_iterable(parts)


def _each(sources: Iterable[ImageLike], look: Method, max_pixels: int) -> Iterator[Explanation | Failure]:
    barren = None
    try:
        for image in sources:
            source = source_name(image)
            try:
                found = look.one(source, to_image(image, max_pixels))
            except ImportError:
                raise
            except Exception as error:  # the other pictures go on
                yield Failure(source, reason_of(error, source))
                continue
            if found is not None:
                yield found
    except FileNotFoundError as error:  # of `find_images`, after all others
        barren = error
    yield from look.all()
    if barren is not None:
        raise barren


def _written(found: Iterable[Explanation | Failure], folder: Path, method: str) -> Iterator[Explanation | Failure]:
    """The same, each explanation's picture written under its image's name, or of all images under the method's."""
    with making(folder), held(folder):
        yield from _write(found, folder, method)


def _write(found: Iterable[Explanation | Failure], folder: Path, method: str) -> Iterator[Explanation | Failure]:
    names: set[str] = set()
    for place, explanation in enumerate(found, 1):
        if isinstance(explanation, Failure):
            yield explanation
            continue
        name = method if method in _OF_ALL else Path(explanation.source).stem
        while name in names:
            name = f"{name}-{place}"
        names.add(name)
        path = folder / f"{name}.png"
        explanation.save(path)
        if method in _OF_ALL:
            with replacing(path.with_suffix(".csv")) as partial:
                _write_table(partial, explanation.rows)
        yield replace(explanation, path=path)


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
