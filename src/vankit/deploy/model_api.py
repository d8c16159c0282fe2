"""What OpenVINO Model API reads of a model besides the model: `rt_info["model_info"]`."""

from typing import Any

from vankit.deploy.folder import Exported
from vankit.models.description import Description

# the wrapper of Model API; it has none for panoptic segmentation
_TYPES = {"classify": "Classification", "detect": "SSD", "segment": "Segmentation"}
_SCORE = 0.3  # as `vankit.DensePredictor` has it
_INTERPOLATIONS = {"nearest": "NEAREST", "bicubic": "CUBIC", "lanczos": "CUBIC"}


def describe(model: Any, exported: Exported) -> None:
    """Write into an `openvino.Model` how its input is made and what its output means.

    Args:
        model: of the folder.
        exported: the folder.
    """
    for name, value in model_info(exported).items():
        model.set_rt_info(value, ["model_info", name])
    if exported.dense:
        import openvino

        model.input(0).node.set_layout(openvino.Layout("NHWC"))


def model_info(exported: Exported) -> dict[str, str]:
    """The entries by name, none for a task that Model API does not know.

    Source: github.com/open-edge-platform/model_api, model_api/models/parameters.py.
    """
    description = exported.description
    if description.task not in _TYPES:
        return {}
    labels = ["_".join(name.split()) or "_" for name in description.classes]
    if description.task == "classify":
        return {"model_type": _TYPES["classify"], "labels": " ".join(labels), **_classifier(description)}
    kind = _TYPES[description.task]
    if "masks" in exported.outputs:
        labels.insert(0, "background")  # these wrappers count classes from 1
        kind = "DETRInstSeg" if description.head == "mask2former" else "MaskRCNN"
    # pictures go in as they are, and boxes come out as fractions of them: "resized" to a side of 1
    whole = {"embedded_processing": "True", "orig_height": "1", "orig_width": "1", "confidence_threshold": str(_SCORE)}
    return {"model_type": kind, "labels": " ".join(labels), **whole}


def _classifier(description: Description) -> dict[str, str]:
    preprocessing = description.preprocessing
    assert preprocessing is not None
    info = {
        "mean_values": _spaced(255 * value for value in preprocessing.mean),
        "scale_values": _spaced(255 * value for value in preprocessing.std),
        "reverse_input_channels": "False",
        "resize_type": "crop",
        "interpolation_mode": _INTERPOLATIONS.get(preprocessing.interpolation, "LINEAR"),
        "output_raw_scores": "True",
        "multilabel": str(description.multi_label),
    }
    if description.multi_label:  # it has one threshold for all classes
        info["confidence_threshold"] = str(min(description.thresholds))
    return info


def _spaced(values: Any) -> str:
    return " ".join(f"{value:.6g}" for value in values)
