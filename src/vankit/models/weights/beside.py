"""Class names and preprocessing: what a checkpoint and the JSON files beside it say, and writing those files."""

import ast
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vankit.data.preprocessing import Preprocessing
from vankit.errors import UserError
from vankit.files import read_json, reading, to_json
from vankit.models.lka_settings import check_lka
from vankit.models.weights.formats import sizes_of
from vankit.models.weights.pickles import entries
from vankit.schema import Name, check

logger = logging.getLogger(__name__)

_HALF = [0.5, 0.5, 0.5]
# the preprocessing of the published weights
PUBLISHED: dict[str, Any] = {
    "input_size": [3, 224, 224], "mean": _HALF, "std": _HALF, "crop_pct": 0.9, "interpolation": "bicubic",
}  # fmt: skip
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_A_VAN = re.compile(r"van_(b[0-6](\.\w+)?|tiny|small|base|large)")
_MULTI_LABEL = "multi_label_classification"  # transformers' word
_LARGEST_CONFIG = 10**6  # characters
# the published files, which were trained at mean = std = 0.5 although the JSON of their repositories says otherwise
_ORIGINALS = ("van_tiny_754.pth.tar", "van_small_811.pth.tar", "van_base_828.pth.tar", "van_large_839.pth.tar")

_Side = Annotated[int, Meta(ge=1, le=100_000)]
_Sides = _Side | Annotated[Sequence[_Side], Meta(max_length=3)] | dict[str, _Side | None]
_Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
_PerChannel = _Number | Annotated[Sequence[_Number], Meta(min_length=1, max_length=3)]


class _Config(TypedDict):
    """config.json: what is used of transformers' and of timm's."""

    model_type: Name
    id2label: dict[str, Name]
    image_size: _Sides
    problem_type: Name
    architecture: Name
    label_names: Sequence[Name]
    label_descriptions: dict[str, Name]
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]


class _Processor(TypedDict):
    """preprocessor_config.json of transformers."""

    size: _Sides
    crop_size: _Sides
    crop_pct: Annotated[float, Meta(gt=0, le=100)]
    resample: Annotated[int, Meta(ge=0, lt=len(_RESAMPLE))]
    image_mean: _PerChannel
    image_std: _PerChannel
    rescale_factor: Annotated[float, Meta(gt=0, le=1e6)]
    do_center_crop: bool
    do_normalize: bool
    do_rescale: bool


def stated(path: Path, content: Any, fmt: str) -> dict[str, Any]:
    """What is known of a network that another library wrote.

    Args:
        path: the checkpoint. Beside it, transformers' `config.json` (`id2label`) and `preprocessor_config.json`, and
            timm's `config.json` (`label_names`, `pretrained_cfg`), are read where they go with `fmt`.
        content: of the file; OpenMMLab's `meta` names classes and holds the text of the run's config, timm's `args` are
            the options of its train.py.
        fmt: one of `FORMATS`.

    Returns:
        As in a vankit file's metadata: `classes`, `preprocessing` (perhaps not all of it), `thresholds`, `model`,
        `lka`; what is not said is left out.
    """
    if fmt == "mmpretrain" or (isinstance(content, Mapping) and "meta" in content):
        return _of_openmmlab(content)
    config = _json_beside(path, "config.json", _Config)
    if fmt == "hf" and config.get("model_type") == "van":
        return _of_transformers(path, config)
    if fmt in ("vankit", "official") and "architecture" in config:
        return _of_timm(path, config)
    return _of_timm_run(content)


def _json_beside(path: Path, name: str, kind: type) -> dict[str, Any]:
    """What can be used of a JSON file, by the names of a TypedDict; what cannot is warned about."""
    beside = path.with_name(name)
    if not beside.exists():
        return {}
    try:
        content = read_json(beside)
    except UserError as error:
        logger.warning("%s: passed over", error)
        return {}
    return _usable(content, kind, beside)


def _usable(values: Mapping[str, Any], kind: type, source: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            if value is not None and check({name: value}, kind):
                found[name] = value
        except UserError as error:
            logger.warning("%s: %s; passed over", source, error)
    return found


def _of_transformers(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    names = _by_index(config.get("id2label"))
    settings = _image_processor(_json_beside(path, "preprocessor_config.json", _Processor))
    if "input_size" not in settings and isinstance(side := config.get("image_size"), int):
        settings["input_size"] = [3, side, side]
    if _is_original(names, settings):
        logger.warning(
            "%s looks like one of the authors' four networks, which were trained at mean = std = 0.5, not as "
            "preprocessor_config.json says: 0.5 is used", path,
        )  # fmt: skip
        settings |= {"mean": _HALF, "std": _HALF, "crop_pct": 0.9}
    labels = config.get("id2label")
    several = config.get("problem_type") == _MULTI_LABEL
    # transformers has no place for thresholds
    thresholds = [0.5] * len(labels) if several and isinstance(labels, Mapping) else None
    return _given(classes=names, preprocessing=settings, thresholds=thresholds)


def _is_original(names: Sequence[str] | None, settings: Mapping[str, Any]) -> bool:
    """The JSON of the four repositories: ImageNet's own names, and its statistics."""
    statistics = [list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)]
    return (
        names is not None
        and len(names) == 1000
        and (names[0].startswith("tench"), names[-1].startswith("toilet")) == (True, True)
        and [settings.get("mean"), settings.get("std")] == statistics
    )


def _by_index(names: Any) -> list[str] | None:
    """id2label as a list; None for the placeholders that transformers fills in."""
    ordered = [names.get(str(i)) for i in range(len(names))] if isinstance(names, Mapping) else []
    if not all(isinstance(name, str) for name in ordered) or ordered == [f"LABEL_{i}" for i in range(len(ordered))]:
        return None
    return [str(name) for name in ordered]


def _image_processor(settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' preprocessor_config.json in timm's words."""
    side, crop = _side(settings.get("size")), _side(settings.get("crop_size"))
    percent = settings.get("crop_pct")
    if side and crop and crop <= side and settings.get("do_center_crop", True):
        side, percent = crop, crop / side
    elif side and side >= 384:  # ConvNextImageProcessor then resizes to the square itself
        percent = 1.0
    elif side and percent is None:
        percent = 224 / 256  # its default
    resample = settings.get("resample")
    words = dict(enumerate(_RESAMPLE))
    mean, std = _per_channel(settings.get("image_mean")), _per_channel(settings.get("image_std"))
    if settings.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if mean and std and factor and factor != 1 / 255:  # what they are in units of 0 to 1
        mean, std = ([number / (255 * factor) for number in three] for three in (mean, std))
    return _given(
        input_size=[3, side, side] if side else None,
        mean=mean,
        std=std,
        crop_pct=percent,
        interpolation=words.get(resample) if isinstance(resample, int) else None,
    )


def _per_channel(values: Any) -> list[float] | None:
    if isinstance(values, list | tuple) and len(values) == 1:
        (values,) = values
    values = [values] * 3 if isinstance(values, int | float) else values
    return list(values) if _three(values) else None


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) and size > 0 else None


def _of_timm(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    model = config["architecture"]
    if not model.startswith("van_"):
        logger.warning("%s is of %s: passed over", path.with_name("config.json"), model)
        return {}
    cfg = config.get("pretrained_cfg", {})
    settings = _usable(preprocessing_in(cfg), Preprocessing, path.with_name("config.json"))
    if path.name in _ORIGINALS:
        settings |= {"mean": _HALF, "std": _HALF}
    lka = config.get("model_args", {}).get("lka")
    with reading(path.with_name("config.json")):
        check_lka(lka or {})
    return _given(
        model=model,
        lka=lka,
        classes=label_names(config) or label_names(cfg),
        preprocessing=settings,
    )


def _of_timm_run(content: Any) -> dict[str, Any]:
    """Of the checkpoints of timm's train.py: the model, whose preprocessing it has but for the options given."""
    saved = entries(content)
    arch, args = saved.get("arch"), entries(saved.get("args"))
    if not isinstance(arch, str) or not _A_VAN.fullmatch(arch):
        return {}
    side = _last(args.get("img_size"))
    size = {"input_size": [3, side, side]} if side and not args.get("input_size") else {}
    return _given(model=arch, preprocessing=preprocessing_in({**args, **size}))


def preprocessing_in(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's configuration, or its script's options, say of preprocessing; what cannot be used is left out."""
    size, percent, word = cfg.get("input_size"), cfg.get("crop_pct"), cfg.get("interpolation")
    sides = list(size)[1:] if isinstance(size, list | tuple) else []
    return _given(
        input_size=[3, *sides] if len(sides) == 2 and all(_last(side) for side in sides) else None,
        mean=_per_channel(cfg.get("mean")),
        std=_per_channel(cfg.get("std")),
        crop_pct=percent if isinstance(percent, int | float) and percent > 0 else None,
        interpolation=word if word in _RESAMPLE else None,
    )


def label_names(config: Mapping[str, Any]) -> list[str] | None:
    """The class names of timm's configuration: its descriptions where it has them, else its names."""
    names, descriptions = config.get("label_names"), config.get("label_descriptions")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    if isinstance(descriptions, Mapping):
        return [str(descriptions.get(name, name)) for name in names]
    return list(names)


def _of_openmmlab(content: Any) -> dict[str, Any]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return {}
    about = meta.get("dataset_meta")
    about = about if isinstance(about, Mapping) else {}
    names = next(filter(None, (about.get("classes"), about.get("CLASSES"), meta.get("CLASSES"))), ())
    classes = list(names) if isinstance(names, list | tuple) else []
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    named = bool(classes) and all(isinstance(name, str) for name in classes)
    return _given(classes=classes if named else None, preprocessing=_settings_in(text))


def _settings_in(text: str) -> dict[str, Any]:
    """Normalisation and size in the text of an OpenMMLab config: Python assignments of nested dicts."""
    try:
        tree = ast.parse(text if len(text) <= _LARGEST_CONFIG else "")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    settings: dict[str, Any] = {}
    scale, swapped = None, False
    for values in _dicts(tree):
        statistics = [values.get("mean"), values.get("std")]
        if all(map(_three, statistics)):
            mean, std = ([number / 255 for number in three] for three in statistics)  # type: ignore[union-attr]
            settings |= {"mean": mean, "std": std}
            swapped |= values.get("to_rgb", values.get("bgr_to_rgb")) is False
        kind = values.get("type")
        if kind in ("Resize", "ResizeEdge"):
            scale = _last(values.get("scale", values.get("size")))
        if kind == "CenterCrop" and (side := _last(values.get("crop_size"))):
            settings["input_size"] = [3, side, side]
            if scale and scale >= side:
                settings["crop_pct"] = side / (scale + 0.5)  # rounded down, it is that scale again
    if swapped:
        logger.warning(
            "a checkpoint's config feeds the network BGR images (to_rgb=False), and vankit feeds it RGB: swap the "
            "channels of its first convolution, or expect wrong answers"
        )
    return settings


def _dicts(tree: ast.AST) -> Iterator[dict[str, Any]]:
    """The constants of every `dict(…)` and `{…}`, in the order of the text."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call | ast.Dict)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        else:
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
        yield {name: _constant(value) for name, value in pairs if isinstance(name, str)}


def _constant(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _three(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)


def _last(size: Any) -> int | None:
    """A side in pixels; of two the second, unless it is -1 for "keep the ratio"."""
    given = size if isinstance(size, list | tuple) else [size]
    sides = [side for side in given if isinstance(side, int) and side > 0]
    return sides[-1] if sides else None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != {}}


def transformers_config(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[Path, str]:
    """The config.json and preprocessor_config.json of transformers (up to 4.57) that go beside a file of its format.

    Args:
        path: the file.
        tensors: under vankit's names.
        metadata: its classes and preprocessing, as in `Checkpoint`; the public weights' where they are not said.

    Returns:
        What to write, by path.

    Raises:
        ValueError: there is a config.json of another model.
    """
    target = path.with_name("config.json")
    if target.exists() and read_json(target).get("model_type") != "van":
        raise UserError(f"{target} is of another model: choose a folder without one")
    head = tensors.get("head.fc.weight")
    outputs = 0 if head is None else head.shape[0]
    names = list(metadata.get("classes") or ())
    if len(names) != outputs:
        names = [f"LABEL_{i}" for i in range(outputs)]  # transformers' own word for not knowing
    settings = {**PUBLISHED, **(metadata.get("preprocessing") or {})}
    sizes = sizes_of(tensors)
    config = {
        "architectures": ["VanForImageClassification" if outputs else "VanModel"],
        "model_type": "van",
        "image_size": settings["input_size"][-1],
        "num_channels": tensors["stage1.patch_embed.proj.weight"].shape[1],
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "hidden_sizes": sizes["embed_dims"],
        "depths": sizes["depths"],
        "mlp_ratios": sizes["mlp_ratios"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if metadata.get("thresholds"):
        config["problem_type"] = _MULTI_LABEL
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": settings["input_size"][-1]},
        "crop_pct": settings["crop_pct"],
        "resample": _RESAMPLE.index(settings["interpolation"]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": settings["mean"],
        "image_std": settings["std"],
    }
    contents = {target: config, path.with_name("preprocessor_config.json"): processor}
    return {file: to_json(content) + "\n" for file, content in contents.items()}
