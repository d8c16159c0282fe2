"""`vankit export`: a network as a folder that runs elsewhere."""

import os
from pathlib import Path
from typing import Literal

from vankit.cli.terminal import say
from vankit.errors import UserError
from vankit.models.description import Weights


def command(
    model: str | None = None,
    /,
    *,
    checkpoint: Path | None = None,
    weights: Weights | None = None,
    output: Path | None = None,
    format: Literal["openvino", "onnx", "pt2", "executorch", "litert", "web"] = "openvino",
    int8: bool = False,
    calibrate: str | None = None,
    check: str | None = None,
    max_drop: float | None = None,
    dynamic: bool = False,
    half: bool = False,
    opset: int | None = None,
    size: tuple[int, int] | None = None,
    runtime: Path | None = None,
    max_pixels: int = 67_108_864,
) -> None:
    """Write a network to a folder, to be run by vankit predict --model FOLDER or by the format's own library.

    The folder holds the model, labels.txt, preprocessing.json, export.json and a README; openvino, onnx and litert run
    without PyTorch. An export that does not compute what the network computes is not kept.

    Args:
        model: such as van_b2 or van_b0.cifar10. Default: the checkpoint's model, or van_b0.
        checkpoint: weights in any public format, or a folder with them. Default: the model's public weights.
        weights: of a checkpoint: raw, or ema for their moving average. Default: the average where there are both.
        output: folder to write. Default: MODEL-FORMAT.
        format: openvino (model.xml and model.bin) or onnx (model.onnx); of classifiers, semantic_fpn and upernet also
            executorch (model.pte) or litert (model.tflite), and of classifiers pt2 (model.pt2, for torch.export) or
            web (a page for any static host, on which the network runs in the visitor's browser).
        int8: quantise to 8 bits; needs --calibrate. For openvino and, of classifiers, onnx.
        calibrate: images to quantise with: labelled data as for vankit validate, or for a classifier a folder or glob
            pattern of photographs.
        check: a folder or glob pattern of photographs on which a detector or segmenter is compared with PyTorch,
            besides generated scenes.
        max_drop: largest loss that quantisation may cause, 0 to 1: of top-1 accuracy, a multi-label classifier's mAP,
            a detector's AP (of masks, if it has them), a segmenter's mIoU or PQ. Default: 0.01.
        dynamic: let a classifier accept any batch size and image size; 2 to 12 % slower. For openvino, onnx and pt2;
            detectors and segmenters accept any image size in openvino and onnx.
        half: store weights in 16 bits, which halves the file; it still computes in float32. For openvino, onnx and web.
        opset: of onnx, the version of its operators, 18 to 25, or 20 for detectors and segmenters. Default:
            torch.onnx's, or 18.
        size: height and width of the pictures, multiples of 32, for a segmenter in executorch or litert, which takes
            one size. Best with the proportions of your pictures. Default: a square of the network's short side.
        runtime: of web, a folder with npm's onnxruntime-web, which is copied into the page. Default: the page loads it
            from cdn.jsdelivr.net.
        max_pixels: an image of --calibrate or --check with more pixels than this is not decoded.
    """
    if max_drop is not None and not int8:
        raise UserError("--max-drop is what int8 may lose: add --int8 --calibrate DATA, or leave it out")

    from vankit.deploy.export import export as run

    found = run(
        model,
        checkpoint,
        output,
        format=format,
        int8=int8,
        calibrate=calibrate,
        check=check,
        max_drop=0.01 if max_drop is None else max_drop,
        dynamic=dynamic,
        half=half,
        opset=opset,
        size=size,
        runtime=runtime,
        weights=weights,
        max_pixels=max_pixels,
    )
    facts = found.facts
    agreed = facts["agreed"] if found.dense else f"logits within {facts['largest_difference']:.0e} of PyTorch's"
    say(f"{found.precision} {found.format}, {'in float32 ' * int8}{agreed}")
    if int8:
        report = facts["int8"]
        left_out = ", ".join(report["left_out"]) or "nothing"
        measure = report["measure"]
        figures = f"int8 {measure} {report['score']:.2%}, float32 {measure} {report['float32']:.2%}"
        say(f"{figures}; not quantised: {left_out}")
    folder = os.path.relpath(found.folder)
    server = f"python -m http.server --bind 127.0.0.1 8000 --directory {folder}, and open http://127.0.0.1:8000"
    say(f"next: {server if format == 'web' else f'vankit predict photo.jpg --model {folder}'}")
