"""Export: a network as a folder that runs elsewhere, checked against PyTorch."""

import copy
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vankit.data.images import MAX_PIXELS
from vankit.data.walk import find_images
from vankit.deploy.card import model_card
from vankit.deploy.dense_card import dense_card
from vankit.deploy.dense_judge import open_labelled
from vankit.deploy.folder import DESCRIPTION, FILES, LARGEST_SIDE, ON_DEVICES, Exported, Format, read_exported
from vankit.deploy.model_api import describe
from vankit.deploy.opening import Network, is_path, open_network
from vankit.deploy.quantize import Trial, open_pictures, quantize
from vankit.deploy.web import SITE_FILES, find_runtime, write_site
from vankit.deploy.whole import write_whole
from vankit.engines.base import CLASS_MAPS, Array, Engine
from vankit.engines.cache import versions
from vankit.engines.convert import (
    OPSETS,
    SMALLEST,
    WHOLE_OPSETS,
    to_executorch,
    to_litert,
    to_onnx,
    to_openvino,
    to_program,
)
from vankit.engines.openvino import openvino_core
from vankit.errors import UserError, check_output
from vankit.files import check_folder, check_named
from vankit.heads.build import HEADS
from vankit.locks import check_free, held
from vankit.models.class_maps import WithClassMaps, has_class_maps
from vankit.models.description import Weights

Run = Callable[[Array], list[Array]]  # all outputs

TOLERANCE = 1e-4  # on logits in float32
HALF_TOLERANCE = 0.02  # with weights in 16 bits: a score then moves by a point at most
_CARD = "README.md"
_PACKAGES: dict[str, tuple[str, ...]] = {
    "openvino": ("vankit", "torch", "openvino"),
    "onnx": ("vankit", "torch", "onnx", "onnxruntime"),
    "pt2": ("vankit", "torch"),
    "executorch": ("vankit", "torch", "executorch"),
    "litert": ("vankit", "torch", "litert-torch", "ai-edge-litert"),
    "web": ("vankit", "torch", "onnx", "onnxruntime"),
}
_WITH_CLASS_MAPS = ("openvino", "onnx", "web")
_ON_DEVICES_TOO = ("semantic_fpn", "upernet")  # heads
_STEP = 32  # pixels of a side; at others LiteRT resizes feature maps in its own way
_FORMATS_WITH: dict[str, tuple[Format, ...]] = {
    "int8": ("openvino", "onnx"),
    "half": ("openvino", "onnx", "web"),
    "opset": ("onnx",),
    "dynamic": ("openvino", "onnx", "pt2"),
    "size": ("executorch", "litert"),
    "runtime": ("web",),
}


def export(
    model: str | nn.Module | None = None,
    checkpoint: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    *,
    format: Format = "openvino",
    int8: bool = False,
    calibrate: str | PathLike[str] | None = None,
    check: str | PathLike[str] | None = None,
    dynamic: bool = False,
    half: bool = False,
    opset: int | None = None,
    size: Sequence[int] | None = None,
    runtime: str | PathLike[str] | None = None,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    max_drop: float = 0.01,
    weights: Weights | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Exported:
    """Write a network as a folder that runs without PyTorch: model, labels.txt, preprocessing.json, README.md.

    The network is folded (see `vankit.fold`) and the model compared with eager PyTorch before it is kept. The model of
    a detector or segmenter takes pictures of every size, as they are; that of a segmenter for litert or executorch
    takes one size, to which vankit resizes them.

    Args:
        model, checkpoint, pretrained, classes, weights: see `vankit.Predictor`.
        out: the folder; MODEL-FORMAT if left out. An exported folder of that name is replaced.
        format: openvino, onnx, litert, or, which need PyTorch, pt2 (torch.export) and executorch; or, for
            classifiers, web, a page that runs the network in the visitor's browser, see `vankit.deploy.web`.
        int8: quantise, see `vankit.deploy.quantize.quantize`; for openvino and, of classifiers, onnx.
        calibrate: pictures for int8, see `vankit.deploy.quantize.open_pictures`, or for detectors and segmenters
            `vankit.deploy.dense_judge.open_labelled`.
        check: a folder or glob pattern of photographs on which a detector's or segmenter's model is compared with
            PyTorch, besides generated scenes.
        dynamic: accept every batch and every size from 33 pixels up, instead of batches of 1 of the network's size;
            for openvino, onnx and pt2. A detector's or segmenter's model accepts every size in openvino and onnx.
        half: store weights in 16 bits, which halves the file; it still computes in float32. For openvino, onnx and web.
        opset: of onnx, the version of its operators: one of `vankit.engines.convert.OPSETS`, or for detectors and
            segmenters `WHOLE_OPSETS`.
        size: height and width of the pictures, multiples of 32, for a segmenter (semantic_fpn or upernet) in litert or
            executorch; best with the proportions of your pictures. A square of the network's short side if left out.
        runtime: for web, a folder with npm's onnxruntime-web, which becomes part of the page; else that loads it from
            cdn.jsdelivr.net.
        max_drop: what int8 may lose of top-1, or of mAP of a multi-label network, AP, mIoU or PQ, 0 to 1.
        max_pixels: of the largest picture of `calibrate` or `check` that is decoded.

    Returns:
        The folder; `facts` has the figures of the checks, and of int8.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had, the options do not go together,
            `out` holds other files, a logit is not finite or further than `TOLERANCE` from PyTorch's (with `half`,
            `HALF_TOLERANCE`), a top-1 differs, a detector or segmenter finds something else (see
            `vankit.deploy.agreement`), or int8 loses more than `max_drop`. Nothing is written then.
        UnsupportedNetworkError: the format cannot express the network.
        ImportError: a package is missing.
    """
    _check_format(
        format, int8=int8, half=half, opset=opset is not None, dynamic=dynamic, size=size is not None,
        runtime=runtime is not None,
    )  # fmt: skip
    _check_options(int8, calibrate, max_drop, half, opset)
    check_named(out=out, calibrate=calibrate, check=check, runtime=runtime)
    in_browser = find_runtime(runtime) if format == "web" else None
    if out is not None:
        _check_target(Path(out).absolute())
    opened = open_network(model, checkpoint, pretrained, classes, weights)
    description = opened.description
    if opened.module is None:
        raise UserError(f"{opened.source} is exported already: export takes a model's name or a checkpoint")
    if opened.dense:
        _check_dense(opened, format, int8, dynamic, opset)
    one = _one_size(opened, format, size)
    if check is not None and not opened.dense:
        raise UserError(f"`check` is for detectors and segmenters, and {opened.source} is a classifier: leave it out")
    photographs = [] if check is None else list(find_images(check))
    name = Path(checkpoint).stem if checkpoint is not None else description.model or opened.source
    target = Path(out or f"{name}-{format}{'-int8' * int8}{'-half' * half}").absolute()
    _check_target(target)
    trial = None
    if calibrate is not None:
        trial = _open_trial(opened, calibrate, max_pixels)
    network = copy.deepcopy(opened.module).float().cpu()
    with held(target), _folder_for(target) as folder:
        outputs = ["logits", *[CLASS_MAPS] * (format in _WITH_CLASS_MAPS and has_class_maps(network))]
        every = dynamic or (opened.dense and not one)
        exported = Exported(folder, format, "float32", every, description, outputs=outputs, size=one)
        if opened.dense:
            exported, checked = write_whole(exported, network, photographs, max_pixels, half, opset)
        else:
            _write_model(exported, network, half, opset)
            tolerance = HALF_TOLERANCE if half else TOLERANCE
            checked = {"half": half, "largest_difference": _largest_difference(exported, network, tolerance)}
        facts = {
            "name": name,
            "command": _command(
                _shown(model, format) if isinstance(model, str | PathLike) and is_path(model) else model,
                checkpoint=_shown(checkpoint, format),
                weights=weights,
                format=format,
                opset=opset,
                size=size,
                runtime=_shown(runtime, format),
                calibrate=calibrate,
                check=check,
                output=_shown(out, format),
                max_drop=max_drop if int8 else None,
                max_pixels=max_pixels if max_pixels != MAX_PIXELS else None,
                int8=int8,
                half=half,
                dynamic=dynamic,
            ),
            "date": datetime.now(UTC).date().isoformat(),
            **checked,
            "versions": versions(*_PACKAGES[format], *["nncf"] * int8),
        }
        precision = "float32"
        if trial is not None:
            precision, facts["int8"] = "int8", asdict(quantize(exported, trial, max_drop))
        exported = replace(exported, precision=precision, facts=facts)
        exported.write_description()
        if in_browser is not None:
            write_site(exported, in_browser)
        else:
            card = (dense_card if exported.dense else model_card)(exported, target.name)
            (folder / _CARD).write_text(card, encoding="utf-8")
    return read_exported(target)


def _check_format(format: str, **asked: bool) -> None:
    """Refuse a format that does not exist, or has not what is asked for."""
    if format not in FILES:
        raise UserError(f"format is {format!r}: expected one of {', '.join(FILES)}")
    for option, formats in _FORMATS_WITH.items():
        if asked[option] and format not in formats:
            raise UserError(f"`{option}` is for format {' or '.join(formats)}, not {format}: leave it out")


def _check_options(int8: bool, calibrate: object, max_drop: float, half: bool, opset: int | None) -> None:
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset is {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    if int8 and half:
        raise UserError("`int8` stores weights in 8 bits: leave out `half`")
    if int8 != (calibrate is not None):
        raise UserError("`int8` and `calibrate` go together: pass both, or neither")
    if not 0 <= max_drop <= 1:
        raise UserError(f"max_drop is {max_drop}: expected 0 to 1, such as 0.01 for one point")


def _check_dense(opened: Network, format: str, int8: bool, dynamic: bool, opset: int | None) -> None:
    what = f"{opened.source} is a {opened.description.head}"
    others = _ON_DEVICES_TOO if format in ON_DEVICES else ()
    if format not in ("openvino", "onnx") and opened.description.head not in others:
        fit = "classifiers, semantic_fpn and upernet" if format in ON_DEVICES else "classifiers"
        raise UserError(f"{what}, and {format} is for {fit}: use format openvino or onnx")
    if dynamic:
        raise UserError(f"{what}, whose model takes every size anyway: leave out `dynamic`")
    if int8 and format != "openvino":
        raise UserError(f"{what}, for which `int8` needs format openvino: leave out `format`")
    if opset not in (None, *WHOLE_OPSETS):
        raise UserError(f"opset is {opset}, and {what}: expected {WHOLE_OPSETS[0]} to {WHOLE_OPSETS[-1]}")


def _one_size(opened: Network, format: str, size: Sequence[int] | None) -> tuple[int, ...]:
    """Height and width of the pictures for a segmenter's model that takes one size; empty for other models."""
    if not opened.dense or format not in ON_DEVICES:
        if size is not None:
            raise UserError(f"{opened.source} is a classifier, and `size` is for segmenters: leave it out")
        return ()
    side = -(-opened.description.short_sides[-1] // _STEP) * _STEP
    sides = (side, side) if size is None else size
    whole = isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(side, int) for side in sides)
    if not whole or not all(side % _STEP == 0 and 0 < side <= LARGEST_SIDE for side in sides):
        raise UserError(f"size is {sides}: expected height and width, multiples of {_STEP} up to {LARGEST_SIDE} pixels")
    return tuple(sides)


def _open_trial(opened: Network, data: str | PathLike[str], max_pixels: int) -> Trial:
    if not opened.dense:
        return open_pictures(data, opened.description, max_pixels)
    return open_labelled(data, opened.description, HEADS[opened.description.head or ""].masks, max_pixels)


def _check_target(target: Path) -> None:
    check_folder(target)
    check_free(target)
    if not target.exists():
        return
    present = {path.name for path in target.iterdir()}
    ours = {*DESCRIPTION, _CARD, *SITE_FILES, *(name for names in FILES.values() for name in names)}
    if present and not {DESCRIPTION[0]} <= present <= ours:
        others = sorted(present - ours) or sorted(present)
        raise UserError(f"{target} holds other files, such as {others[0]}: pass another folder (--output)")


def _shown(path: str | PathLike[str] | None, format: str) -> str | PathLike[str] | None:
    """A path as the folder tells it: a site tells everyone, whom folders of this machine do not concern."""
    return path if path is None or format != "web" else Path(path).name


def _command(model: object, **options: object) -> str:
    """What to type for the same export; options that are None or False are left out."""
    if isinstance(model, nn.Module):
        return "vankit.export(network, …)"
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            several = value if isinstance(value, tuple | list) else [value]
            words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, several))]
    return shlex.join(["vankit", "export", *([] if model is None else [str(model)]), *words])


@contextmanager
def _folder_for(target: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `target`; it goes if anything is raised."""
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("vankit-new", "vankit-old"))
    if old.exists():  # a process was killed between its two renames, or after them
        shutil.rmtree(old) if target.exists() else old.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_model(exported: Exported, network: nn.Module, half: bool, opset: int | None) -> None:
    size, dynamic = exported.preprocessing.input_size, exported.dynamic
    if exported.format in ("onnx", "web"):
        exported.path.write_bytes(to_onnx(network, size, dynamic, opset, half))
    elif exported.format == "executorch":
        exported.path.write_bytes(to_executorch(network, size))
    elif exported.format == "litert":
        exported.path.write_bytes(to_litert(network, size))
    elif exported.format == "pt2":
        torch.export.save(to_program(network, size, dynamic), exported.path)
    else:
        model = to_openvino(network, size, dynamic)
        import openvino

        describe(model, exported)
        openvino.save_model(model, exported.path, compress_to_fp16=half)


def _largest_difference(exported: Exported, network: nn.Module, tolerance: float) -> float:
    """Compare with the eager network on noise and on smooth pictures, at further sizes where the export is dynamic.

    Returns:
        That of a logit.

    Raises:
        ValueError: a logit or class map is further than `tolerance` off or not finite, or a top-1 is another.
    """
    preprocessing, rng = exported.preprocessing, np.random.default_rng(0)
    channels, height, width = preprocessing.input_size
    noise = rng.standard_normal((4, channels, height, width), np.float32)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(4)]
    pictures = np.stack([preprocessing(image.resize((2 * width, 3 * height))) for image in coarse])
    run = _one_by_one(exported.engine(cached=False, class_maps=True))
    cases = [(run, np.concatenate([noise, pictures]))]
    if exported.dynamic:
        run = _as_it_is(exported)
        shapes = (2, channels, height, width), (1, channels, height + 31, width), (3, channels, SMALLEST, 65)
        cases += [(run, rng.standard_normal(shape, np.float32)) for shape in shapes]
    worst = 0.0
    eager = WithClassMaps(network) if CLASS_MAPS in exported.outputs else network
    for run, x in cases:
        with torch.inference_mode():
            answer = eager(torch.from_numpy(x))
        expected = [y.numpy() for y in (answer if isinstance(answer, tuple) else [answer])]
        found = run(x)
        for output in (*expected, *found):
            check_output(output)
        differences = [float(np.abs(y - z).max()) for y, z in zip(found, expected, strict=True)]
        largest = max(differences)
        others = int((found[0].argmax(1) != expected[0].argmax(1)).sum())
        if largest > tolerance or others:
            output = "a class map" if largest > max(tolerance, differences[0]) else "a logit"
            raise UserError(
                f"the exported network differs from PyTorch's: {output} differs by {largest:.1e}, where "
                f"{tolerance:.0e} is allowed, and top-1 on {others} of {len(x)} inputs {x.shape[1:]}; "
                "nothing was written"
            )
        worst = max(worst, differences[0])
    return worst


def _one_by_one(engine: Engine) -> Run:
    return lambda x: [np.concatenate(part) for part in zip(*(engine.outputs(image[None]) for image in x), strict=True)]


def _as_it_is(exported: Exported) -> Run:
    """The model for batches and sizes of all kinds, as others will run it: `Exported.engine` settles for one."""
    if exported.format == "openvino":
        compiled = openvino_core().compile_model(exported.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: list(compiled(x).values())
    if exported.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})
    return exported.engine(cached=False).outputs
