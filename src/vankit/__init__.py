"""The Visual Attention Network and large kernel attention. Importing this registers van_b0 to van_b6 with timm.

The models, and with them PyTorch, are loaded when timm is, or when a name of theirs is first used: an exported network
is run without either.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from vankit.bench import bench
    from vankit.data.images import ImageError
    from vankit.demo import demo
    from vankit.dense import DensePredictor
    from vankit.explain import Explanation, explain
    from vankit.export import export
    from vankit.models.fold import fold
    from vankit.models.hub import DownloadError
    from vankit.models.lka import LargeKernelAttention
    from vankit.models.van import VAN
    from vankit.models.weights import Checkpoint, convert, load_checkpoint, read_checkpoint, save_checkpoint
    from vankit.ops import large_kernel_attention
    from vankit.predict import Label, Prediction, Predictor, inference_model, predict
    from vankit.recipes import DenseConfig, TrainConfig, recipe
    from vankit.results import Detections, Failure, PanopticMap, SemanticMap
    from vankit.study import complexity
    from vankit.train import train
    from vankit.validate import ClassificationReport, DenseReport, validate

__version__ = "0.1.0"

__all__ = [
    "VAN",
    "Checkpoint",
    "ClassificationReport",
    "DenseConfig",
    "DensePredictor",
    "DenseReport",
    "Detections",
    "DownloadError",
    "Explanation",
    "Failure",
    "ImageError",
    "Label",
    "LargeKernelAttention",
    "PanopticMap",
    "Prediction",
    "Predictor",
    "SemanticMap",
    "TrainConfig",
    "bench",
    "complexity",
    "convert",
    "demo",
    "explain",
    "export",
    "fold",
    "inference_model",
    "large_kernel_attention",
    "load_checkpoint",
    "predict",
    "read_checkpoint",
    "recipe",
    "save_checkpoint",
    "train",
    "validate",
]

# Loaded on first use: PyTorch, Lightning, torchmetrics and the dataset readers take seconds to import
_LATER = {
    "VAN": "models.van",
    "Checkpoint": "models.weights",
    "ClassificationReport": "validate",
    "DenseConfig": "recipes",
    "DensePredictor": "dense",
    "DenseReport": "validate",
    "Detections": "results",
    "DownloadError": "models.hub",
    "Explanation": "explain",
    "Failure": "results",
    "ImageError": "data.images",
    "Label": "predict",
    "LargeKernelAttention": "models.lka",
    "PanopticMap": "results",
    "Prediction": "predict",
    "Predictor": "predict",
    "SemanticMap": "results",
    "TrainConfig": "recipes",
    "bench": "bench",
    "complexity": "study",
    "convert": "models.weights",
    "demo": "demo",
    "explain": "explain",
    "export": "export",
    "fold": "models.fold",
    "inference_model": "predict",
    "large_kernel_attention": "ops",
    "load_checkpoint": "models.weights",
    "predict": "predict",
    "read_checkpoint": "models.weights",
    "recipe": "recipes",
    "save_checkpoint": "models.weights",
    "train": "train",
    "validate": "validate",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'vankit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vankit.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `vankit.train` the function: Python binds a submodule of the same name here when it is first imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LATER and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

register_post_import_hook(lambda _: importlib.import_module("vankit.models.van"), "timm")
