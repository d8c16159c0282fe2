"""What the fuzzers start from: small valid files of every kind that a target reads, made when they are needed."""

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .targets import Case

_SIZE = (8, 6)


def cases(target: str) -> list[Case]:
    """Valid inputs of a target."""
    return list(_CASES[target]())


def fixed(target: str) -> Case:
    """What lies in a target's folder beside the files that vary."""
    return _FIXED.get(target, dict)()


@cache
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (_SIZE[1], _SIZE[0], 3), np.uint8)
    return Image.fromarray(values)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (picture() if image is None else image).save(stream, kind, **options)
    return stream.getvalue()


def _images() -> Iterator[Case]:
    rgb = picture()
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    wide = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)
    floats = Image.fromarray(np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    for data in (
        encoded("JPEG"),
        encoded("JPEG", exif=turned, progressive=True),
        encoded("JPEG", rgb.convert("CMYK")),
        encoded("MPO", **frames),
        encoded("PNG", exif=turned),
        encoded("PNG", palette, transparency=1),
        encoded("PNG", wide),
        encoded("PNG", rgb.convert("1")),
        encoded("GIF", palette, transparency=1, **frames),
        encoded("TIFF", exif=turned),
        encoded("TIFF", compression="tiff_lzw"),
        encoded("TIFF", compression="jpeg"),
        encoded("TIFF", floats),
        encoded("TIFF", wide, compression="packbits"),
        encoded("BMP", palette),
        encoded("PPM"),
        encoded("PPM", rgb.convert("1")),
        encoded("PPM", floats),
        encoded("WEBP", exif=turned),
        encoded("WEBP", rgb.convert("RGBA"), lossless=True, **frames),
        encoded("AVIF"),
        encoded("JPEG2000"),
        *_heic(),
    ):
        yield {"image": data}


def _heic() -> Iterator[bytes]:
    try:
        from pillow_heif import from_pillow
    except ImportError:
        return
    stream = io.BytesIO()
    from_pillow(Image.new("RGB", (64, 64), "red")).save(stream)
    yield stream.getvalue()


@cache
def _van() -> Any:
    """A VAN of the smallest size there is."""
    from vankit.models.van import create_model

    torch.manual_seed(0)
    return create_model("van_b0", num_classes=2, embed_dims=(2,) * 4, depths=(1,) * 4, mlp_ratios=(1,) * 4)


_PREPROCESSING = {
    "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic",
}  # fmt: skip
_CLASSIFIER = {
    "task": "classify", "model": "van_b0", "classes": ["cat", "dog"], "preprocessing": _PREPROCESSING,
    "thresholds": [0.5, 0.25], "held_out": {"share": 0.1, "seed": 0, "plain": True, "total": 7},
}  # fmt: skip
_SEGMENTER = {
    "task": "segment", "head": "semantic_fpn", "model": "van_b0", "lka": {}, "classes": ["road", "sky"],
    "things": [True, False], "category_ids": [1, 7], "short_sides": [64, 96], "long_side": 128, "crop": 64,
    "queries": 10, "ignore_label": 255, "map_labels": ["3:1"],
}  # fmt: skip


def _file(fmt: str, name: str, metadata: dict[str, Any] | None = None) -> bytes:
    from vankit.models.weights import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write_checkpoint(_van().state_dict(), path, fmt, metadata)
        return path.read_bytes()


def _saved(content: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _checkpoints() -> Iterator[Case]:
    state = _van().state_dict()
    config = "model = dict(data_preprocessor=dict(mean=[127.5] * 3, std=[127.5, 127.5, 127.5], to_rgb=True))\n"
    args = {"img_size": 32, "mean": [0.5] * 3, "crop_pct": 0.9}
    averaged = {f"module.{name}": tensor for name, tensor in state.items()}
    for data in (
        _file("vankit", "a.safetensors", _CLASSIFIER),
        _file("hf", "a.safetensors"),
        _file("official", "a.pth.tar"),
        _file("mmpretrain", "a.pth", {"classes": ["cat", "dog"]}),
        _saved({"state_dict": state, "arch": "van_b0", "args": args, "epoch": 3}, zipped=False),
        _saved({"state_dict": state, "meta": {"dataset_meta": {"classes": ["cat", "dog"]}, "cfg": config}}),
        _saved({"model": state, "model_ema": {"module": averaged, "n_averaged": torch.tensor(3)}}),
        _saved(_van()),
    ):
        yield {"weights": data}


def _heads() -> Iterator[Case]:
    for task, head in (("segment", "semantic_fpn"), ("detect", "sparse_rcnn"), ("detect", "retinanet")):
        yield {"metadata.json": _json(_SEGMENTER | {"task": task, "head": head})}


def _beside() -> Iterator[Case]:
    from vankit.models.weights import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        write_checkpoint(_van().state_dict(), path, "hf", {"classes": ["cat", "dog"], "preprocessing": _PREPROCESSING})
        of_hf = {f"hf/{each.name}": each.read_bytes() for each in path.parent.glob("*.json")}
    cfg = {**_PREPROCESSING, "label_names": ["cat", "dog"], "label_descriptions": {"cat": "a cat"}, "pool_size": [1, 1]}
    of_timm = {
        "architecture": "van_b0", "num_classes": 2, "model_args": {"lka": {}}, "pretrained_cfg": cfg,
        "label_names": ["cat", "dog"],
    }  # fmt: skip
    yield {**of_hf, "timm/config.json": _json(of_timm)}


def _beside_fixed() -> Case:
    return {"hf/model.safetensors": _file("hf", "a.safetensors"), "timm/model.safetensors": _untold()}


def _untold() -> bytes:
    """A file of vankit's names that does not say what it is, as timm writes."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in _van().state_dict().items()}, {"format": "pt"})


def _runs() -> Iterator[Case]:
    yield {"run/config.json": _json({"data": "flowers", "epochs": 3, **_CLASSIFIER})}
    yield {"run/config.json": _json({"data": "streets", "epochs": 3, **_SEGMENTER})}


def _run_fixed() -> Case:
    state = {f"model.{name}": tensor for name, tensor in _van().state_dict().items()}
    return {"run/resume.ckpt": _saved({"state_dict": state, "pytorch-lightning_version": "2.6.0", "epoch": 1})}


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _coco() -> Iterator[Case]:
    mask = {"size": [6, 8], "counts": [10, 3, 35]}
    content = {
        "info": {"year": 2026},
        "images": [
            {"id": 1, "file_name": "a.png", "width": 8, "height": 6},
            {"id": 2, "file_name": "b.jpg", "width": 8, "height": 6, "license": None},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 3], "area": 12.0, "iscrowd": 0,
             "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4], [0, 0, 2, 0, 2, 2]]},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0.5, 0.5, 3, 3], "iscrowd": 1, "segmentation": mask},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 8, 6],
             "segmentation": {"size": [6, 8], "counts": "=24000a0"}},
        ],
        "categories": [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 3, "name": "cat", "supercategory": "pets"},
            {"id": 7, "name": "dog", "supercategory": "pets"},
        ],
    }  # fmt: skip
    yield {"annotations/instances_train.json": _json(content)}


def _coco_fixed() -> Case:
    return {"train/a.png": encoded("PNG"), "train/b.jpg": encoded("JPEG")}


def _panoptic() -> Iterator[Case]:
    ids = np.zeros((6, 8, 3), np.uint8)
    ids[:3, :, 0], ids[3:, :4] = 5, (1, 2, 0)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [
            {"image_id": 1, "file_name": "a.png", "segments_info": [
                {"id": 5, "category_id": 1, "iscrowd": 0, "area": 24, "bbox": [0, 0, 8, 3]},
                {"id": 513, "category_id": 2, "iscrowd": 1, "area": 12, "bbox": [0, 3, 4, 3]},
            ]},
        ],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "grass", "isthing": 0}],
    }  # fmt: skip
    yield {
        "annotations/panoptic_train.json": _json(content),
        "annotations/panoptic_train/a.png": encoded("PNG", Image.fromarray(ids)),
    }


def _yolo() -> Iterator[Case]:
    labels = b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n\n1 0.5 0.5 0.1 0.1 0.87\n"
    config = b"path: ../somewhere\ntrain: images/train\nval: images/train\nnc: 2\nnames: [cat, dog]\n"
    poses = b"train: images/train\nval: images/train\nnames:\n  0: cat\n  1: no\nkpt_shape: [2, 3]\n"
    listed = b"images/train/a.png\ndata/images/train/b.jpg\n"
    yield {"data.yaml": config, "labels/train/a.txt": labels}
    yield {"data.yaml": poses, "labels/train/a.txt": b"1 0.5 0.5 0.25 0.5 0.1 0.2 2 0.3 0.4 1\n"}
    yield {"labels/train/a.txt": labels, "classes.txt": b"cat\ndog\n"}
    yield {"data.yaml": b"train: train.txt\nnames: [cat, dog]\n", "labels/train/a.txt": labels, "train.txt": listed}


def _yolo_fixed() -> Case:
    return {"images/train/a.png": encoded("PNG"), "images/train/b.jpg": encoded("JPEG")}


def _voc() -> Iterator[Case]:
    xml = """<?xml version="1.0" encoding="utf-8"?>
<annotation verified="yes"><filename>a.png</filename><size><width>8</width><height>6</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>5</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>2.5</xmin><ymin>2</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object></annotation>"""
    empty = xml.partition("<object>")[0] + "</annotation>"
    parts = {"Annotations/a.xml": xml.encode(), "Annotations/b.xml": empty.encode()}
    yield parts
    yield parts | {"ImageSets/Main/train.txt": b"a\nb 1\n", "classes.txt": b"cat\ndog\n"}


def _voc_fixed() -> Case:
    return {"JPEGImages/a.png": encoded("PNG"), "JPEGImages/b.jpg": encoded("JPEG")}


def _semantic() -> Iterator[Case]:
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 64]], np.uint8)[indices]
    coloured = {"annotations/train/a.png": encoded("PNG", Image.fromarray(colours))}
    numbers = {"annotations/train/a.png": encoded("PNG", Image.fromarray(indices))}
    yield coloured | {"palette.txt": b"# R G B name\n0 0 0 void\n128 0 0 road\n0 128 64 sky, blue\n"}
    yield coloured | {"class_dict.csv": b"name,r,g,b\nvoid,0,0,0\nroad,128,0,0\nsky,0,128,64\n"}
    yield coloured | {"labelmap.txt": b"# label:color_rgb:parts:actions\nvoid:0,0,0::\nroad:128,0,0::\nsky:0,128,64::"}
    yield numbers | {"classes.txt": b"road\nsky\nsea\n"}
    yield numbers
    yield {"annotations/train/a.png": encoded("PNG", Image.fromarray(indices.astype(np.uint16) + 1))}


def _semantic_fixed() -> Case:
    return {"images/train/a.png": encoded("PNG")}


def _multilabel() -> Iterator[Case]:
    yield {"train.csv": b"file,labels\na.png,dune;palm\nb.jpg,\nb.jpg,camel\n", "val.csv": b"file,labels\na,palm\n"}
    yield {"train.csv": b"image name;Camel;Dune\nimages/a.png;0;1\nb.jpg;1.0;True\n"}
    yield {"train.csv": b'\xef\xbb\xbfid\ttags\tnot used\r\na\t"dune palm"\t"3\n"\r\n'}


def _multilabel_fixed() -> Case:
    return {"a.png": encoded("PNG"), "b.jpg": encoded("JPEG"), "images/a.png": encoded("PNG")}


def _exported() -> Iterator[Case]:
    from vankit.deploy.folder import Exported
    from vankit.models.description import Description

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.onnx").write_bytes(b"a network")
        description = Description.from_metadata(_CLASSIFIER, Description())
        Exported(Path(folder), "onnx", "float32", True, description, {"opset": 18}).write_description()
        yield {name: Path(folder, name).read_bytes() for name in ("export.json", "preprocessing.json", "labels.txt")}


def _programs() -> Iterator[Case]:
    from vankit.models.lka import LargeKernelAttention

    images, batch = torch.zeros(2, 3, 8, 8), torch.export.Dim("batch")
    ends = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    attention = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), LargeKernelAttention(2), *ends)
    yield _exported_program(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), *ends), images, {0: batch})
    yield _exported_program(_Sums(), images, {0: batch, 2: torch.export.Dim("height", min=2)})
    yield _exported_program(attention, images[:1], None)


class _Sums(torch.nn.Module):
    """With a buffer, a constant, and arithmetic of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(3, 1, 1))
        self.constant = torch.ones(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images, channels, height, width = x.shape
        flat = (x - self.mean + self.constant).reshape(images * channels, height * width)
        return flat.sum(1).reshape(images, channels)[:, :2]


def _exported_program(network: torch.nn.Module, images: torch.Tensor, axes: Any) -> Case:
    stream = io.BytesIO()
    program = torch.export.export(network.eval(), (images,), dynamic_shapes=axes and (axes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # as `vankit.engines.convert.to_program`
    torch.export.save(program, stream)
    return {"model.pt2": stream.getvalue()}


def _metadata() -> Iterator[Case]:
    from vankit.data.held_out import HeldOut

    yield {"metadata.json": _json(_CLASSIFIER)}
    yield {"metadata.json": _json(_SEGMENTER | {"held_out": asdict(HeldOut(total=3))})}


def _table(kind: str) -> Iterator[Case]:
    from vankit.prediction.tables import open_table

    name = f"rows.{kind}"
    with tempfile.TemporaryDirectory() as folder:
        with open_table(Path(folder, name), 2) as table:
            for image, error in (("a, b.png", None), ('c"d\n.png', "broken"), ("é.png", None)):
                found = [] if error else [0, 1]
                labels = [["cat", "dog"][i] for i in found]
                scores = [1 / (i + 2) for i in found]
                table.write({"image": image, "labels": labels, "indices": found, "scores": scores, "error": error})
        yield {name: Path(folder, name).read_bytes()}


_CASES = {
    "image": _images,
    "checkpoint": _checkpoints,
    "network": _checkpoints,
    "head": _heads,
    "beside": _beside,
    "run": _runs,
    "coco": _coco,
    "panoptic": _panoptic,
    "yolo": _yolo,
    "voc": _voc,
    "semantic": _semantic,
    "map_labels": lambda: iter([{"pairs.txt": b"255:1\n0:0\n65535:255\n"}]),
    "multilabel": _multilabel,
    "exported": _exported,
    "program": _programs,
    "metadata": _metadata,
    "table-csv": lambda: _table("csv"),
    "table-jsonl": lambda: _table("jsonl"),
    "table-parquet": lambda: _table("parquet"),
}
_FIXED = {
    "beside": _beside_fixed,
    "run": _run_fixed,
    "coco": _coco_fixed,
    "panoptic": lambda: {"train/a.png": encoded("PNG")},
    "yolo": _yolo_fixed,
    "voc": _voc_fixed,
    "semantic": _semantic_fixed,
    "multilabel": _multilabel_fixed,
    "exported": lambda: {"model.onnx": b"a network"},
}
