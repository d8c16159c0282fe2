"""The `vankit` command: a thin layer over the Python API."""

import dataclasses
import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.table import Table

from vankit import __version__, recipes
from vankit.cli.explain import explain
from vankit.cli.predict import predict
from vankit.cli.settings import Settings, given
from vankit.cli.study import study
from vankit.cli.terminal import console, quieten_lightning
from vankit.engines import EngineName, Precision

app = App(
    name="vankit",
    help="The Visual Attention Network: train it, measure it, use it.",
    version=__version__,
    help_format="plaintext",
)
for _command in (predict, explain, study):
    app.command(_command)


@app.command
def models(*, size: int = 224) -> None:
    """List the variants with their parameters, cost and published accuracy.

    Args:
        size: side in pixels of the square image that the cost is counted for.
    """
    from vankit.models.van import VARIANTS
    from vankit.study import ACCURACY, complexity

    table = Table(
        title=f"VAN at {size} px", caption="accuracy: ImageNet-1k at 224 px, as published for the public weights"
    )
    table.add_column("model")
    for heading in (
        "parameters", "GMACs\nconv, matmul", "GMACs\n+ bias, norm, product", "top-1 %", "top-5 %", "weights",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for name in VARIANTS:
        cost = complexity(name, size)
        top1, top5 = (f"{x:.2f}" for x in ACCURACY[name]) if name in ACCURACY else ("", "")
        row = (f"{cost.params:,}", f"{cost.macs / 1e9:.3f}", f"{cost.macs_all / 1e9:.3f}", top1, top5)
        table.add_row(name, *row, "public" if name in ACCURACY else "none")
    console().print(table)


@app.command
def train(
    data: str,
    *,
    task: Literal["classify", "detect", "segment", "panoptic"] = "classify",
    head: str | None = None,
    model: str = "van_b0",
    recipe: str | None = None,
    out: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """Train a classifier, a detector or a segmenter.

    Writes best.safetensors, last.safetensors, metrics.csv, TensorBoard logs and the state to resume. Also runs under
    torchrun: torchrun --nproc-per-node N -m vankit train ...

    Args:
        data: the word shapes, or to classify a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, hfds/NAME or
            wds/FOLDER; to detect a COCO folder with annotations/instances_*.json; to segment a folder with
            images/{train,val} and annotations/{train,val}; for panoptic a COCO folder with annotations/panoptic_*.json.
        task: what to train for.
        head: detect: retinanet, faster_rcnn, mask_rcnn (taken if left out), cascade_mask_rcnn, sparse_rcnn, rt_detr,
            d_fine, deformable_detr or mask2former; segment: semantic_fpn (taken if left out), upernet or mask2former;
            panoptic: mask2former.
        model: van_b0 to van_b6.
        recipe: classify: in1k (the paper's), finetune (small sets, from pretrained weights) or short (from scratch,
            quickly); detect: coco_1x, coco_3x or short; segment: ade20k_fpn, ade20k_upernet or short; panoptic:
            coco_panoptic or short. The first one, or the head's own, if left out.
        out: folder for the run; runs/MODEL or runs/MODEL-HEAD-TASK if left out.
        checkpoint: weights to start from, in any public format.
        resume: continue the run in --out.
        skip_bad: leave out images and annotations that cannot be used, with a warning; not to classify.
        settings: overrides of the recipe.
    """
    from vankit.train import train as run

    quieten_lightning()
    chosen = given(settings)
    config = recipes.recipe(recipe, model, task, head)
    if unknown := sorted(set(chosen) - {field.name for field in dataclasses.fields(config)}):
        raise ValueError(f"--{unknown[0].replace('_', '-')} is no setting of task {task}: leave it out")
    if "epochs" in chosen and isinstance(config, recipes.DenseConfig):
        chosen.setdefault("iterations", 0)  # some recipes count these instead
    config = dataclasses.replace(config, **chosen)
    result = run(data, model, config, out, checkpoint, resume, task=task, head=head, skip_bad=skip_bad)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"best {result.measure} {result.score:.2%} after {result.seconds:.0f} s: {result.best}")


@app.command
def validate(
    data: str,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    output: Path | None = None,
    picture: Path | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    engine: EngineName = "auto",
    precision: Precision = "auto",
    seed: int = 0,
    split: str = "val",
    test: Literal["single", "multiscale", "slide"] = "single",
    skip_bad: bool = False,
) -> None:
    """Measure a classifier (top-1, top-5, confusion matrix), detector (COCO AP) or segmenter (mIoU, PQ), per class too.

    Args:
        data: as for train.
        model: such as van_b2 or van_b0.cifar10, or an exported folder; the checkpoint's if left out.
        checkpoint: weights in any public format, or of a detector or segmenter; the model's public ones if left out.
        output: JSON file for all figures.
        picture: image file for a classifier's confusion matrix, such as confusion.png.
        batch_size: images per forward pass; detectors and segmenters take one at a time.
        workers: processes that load images.
        device: cpu, cuda, or auto.
        engine: what runs the network: torch, openvino, onnxruntime, or auto, the fastest for the device.
        precision: float32, bf16, int8 (of a folder exported so), or auto: float32, and int8 for such a folder.
        seed: of the generated shapes.
        split: which part of the data: train, val, or the name of a folder such as test.
        test: how to segment: the whole image, at several scales and mirrored, or in sliding windows.
        skip_bad: leave out images and annotations that cannot be used, with a warning; not for a classifier.
    """
    from vankit.validate import DenseReport
    from vankit.validate import validate as run

    report = run(
        data, model, checkpoint, output, picture, workers=workers, seed=seed, batch_size=batch_size, device=device,
        engine=engine, precision=precision, split=split, test=test, skip_bad=skip_bad,
    )  # fmt: skip
    if isinstance(report, DenseReport):
        _print_scenes(data, report)
        return
    table = Table(title=f"{data}: {report.count:,} images")
    table.add_column("class")
    for heading in ("images", "recall %", "precision %"):
        table.add_column(heading, justify="right")
    for row in report.per_class():
        shares = ("" if row[key] is None else f"{row[key]:.1%}" for key in ("recall", "precision"))
        table.add_row(row["class"], str(row["images"]), *shares)
    console().print(table)
    print(f"top-1 {report.top1:.2%}  top-5 {report.top5:.2%}  images {report.count}  left out {len(report.skipped)}")


def _print_scenes(data: str, report: Any) -> None:
    table = Table(title=f"{data}: {report.count:,} images, {report.head}")
    table.add_column("class")
    columns = [name for name in report.per_class[0] if name != "class"]
    for name in columns:
        table.add_column(name, justify="right")
    for row in report.per_class:
        table.add_row(row["class"], *(_figure(row[name]) for name in columns))
    console().print(table)
    figures = "  ".join(f"{name} {_figure(value)}" for name, value in report.measures.items())
    print(f"{figures}  images {report.count}  left out {len(report.skipped)}")


def _figure(value: float | int | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"


@app.command
def export(
    model: str | None = None,
    /,
    *,
    checkpoint: Path | None = None,
    out: Path | None = None,
    format: Literal["openvino", "onnx", "pt2"] = "openvino",
    int8: bool = False,
    calibrate: str | None = None,
    max_drop: float = 0.01,
    dynamic: bool = False,
) -> None:
    """Write a classifier as a folder that vankit predict --model FOLDER, or the format's own library, runs.

    The folder holds the model, labels.txt, preprocessing.json, export.json and a README; openvino and onnx run without
    PyTorch. Nothing is kept that does not compute what the network computes.

    Args:
        model: such as van_b2 or van_b0.cifar10; the checkpoint's if left out, else van_b0.
        checkpoint: weights in any public format; the model's public ones if left out.
        out: folder to write; MODEL-FORMAT if left out.
        format: openvino (model.xml, model.bin), onnx (model.onnx) or pt2 (torch.export's model.pt2).
        int8: quantise to 8 bits; needs --calibrate.
        calibrate: what to quantise with: labelled data as for validate, or a folder or pattern of photographs.
        max_drop: largest loss of top-1 by quantisation, 0 to 1.
        dynamic: accept every batch and image size, 2 to 12 % slower.
    """
    from vankit.export import export as run

    found = run(
        model, checkpoint, out, format=format, int8=int8, calibrate=calibrate, max_drop=max_drop, dynamic=dynamic
    )
    print(f"{found.precision} {found.format}, at most {found.facts['largest_difference']:.0e} from PyTorch's logits")
    if int8:
        report = found.facts["int8"]
        left_out = ", ".join(report["left_out"]) or "nothing"
        print(f"int8 top-1 {report['top1']:.2%}, before {report['float32']:.2%}; left in float: {left_out}")
    folder = os.path.relpath(found.folder)
    print(f"next: vankit predict photo.jpg --model {folder}")


@app.command
def bench(models: list[str] | None = None, /, *, seconds: float = 15) -> None:
    """Time vankit's engines against plain PyTorch on this machine: one image at a time, random weights.

    Args:
        models: names of timm models; van_b0 if left out.
        seconds: to time each for, after a minute or two in which the networks are compiled.
    """
    from vankit.bench import bench as run

    table = Table(title="milliseconds for one image, median and quartiles")
    table.add_column("model")
    table.add_column("engine")
    for heading in ("ms", "quartiles", "times as fast", "same top-1", "logits off"):
        table.add_column(heading, justify="right")
    for row in run(models or ["van_b0"], seconds):
        if row.ms is None:
            table.add_row(row.model, row.contender, row.note)
            continue
        speedup = "" if row.speedup is None else f"{row.speedup:.1f}"
        cells = f"{row.ms:.2f}", f"{row.ms_low:.2f} – {row.ms_high:.2f}", speedup
        table.add_row(row.model, row.contender, *cells, f"{row.agreement:.0%}", f"{row.difference:.0e}")
    console().print(table)


@app.command
def convert(source: Path, target: Path, /, *, to: Literal["vankit", "official", "mmpretrain", "hf"] = "vankit") -> None:
    """Convert a checkpoint between the public formats; the tensors stay bit-exact.

    Args:
        source: checkpoint of any of the formats; which one is found out from the file. Of a detector or segmenter the
            backbone is converted.
        target: file to write.
        to: vankit (safetensors), official (VAN-Classification), mmpretrain, or hf (transformers; a name that ends in
            .safetensors gives safetensors, any other a pickle of tensors).
    """
    from vankit import convert as run

    found = run(source, target, to)
    print(f"{source} ({found}) → {target} ({to})")


@app.command
def demo(*, out: Path = Path("runs/demo")) -> None:
    """Train van_b0 on generated pictures in two minutes, validate it, predict, and leave a picture of the results.

    Args:
        out: folder for the run.
    """
    from vankit.demo import demo as run

    quieten_lightning()
    result = run(out)
    print(f"top-1 {result.report.top1:.2%} on {result.report.count:,} new images")
    print(f"pictures: {result.picture}, {result.confusion}")
    print(f"next: vankit predict photo.jpg --checkpoint {result.checkpoint}")


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line and status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no text
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        status = app(argv, result_action="return_value")
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        if message.startswith("Caught "):  # in a process that loads images, with its traceback
            message = message.strip().splitlines()[-1].partition(": ")[2]
        print(f"vankit: {message}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(status or 0)
