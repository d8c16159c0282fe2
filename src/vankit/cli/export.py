"""`vankit export`: a folder that runs elsewhere."""

import os
from pathlib import Path
from typing import Literal


def command(
    model: str | None = None,
    /,
    *,
    checkpoint: Path | None = None,
    output: Path | None = None,
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
        output: folder to write; MODEL-FORMAT if left out.
        format: openvino (model.xml, model.bin), onnx (model.onnx) or pt2 (torch.export's model.pt2).
        int8: quantise to 8 bits; needs --calibrate.
        calibrate: what to quantise with: labelled data as for validate, or a folder or pattern of photographs.
        max_drop: largest loss of top-1 by quantisation, 0 to 1.
        dynamic: accept every batch and image size, 2 to 12 % slower.
    """
    from vankit.deploy.export import export as run

    found = run(
        model, checkpoint, output, format=format, int8=int8, calibrate=calibrate, max_drop=max_drop, dynamic=dynamic
    )
    print(f"{found.precision} {found.format}, at most {found.facts['largest_difference']:.0e} from PyTorch's logits")
    if int8:
        report = found.facts["int8"]
        left_out = ", ".join(report["left_out"]) or "nothing"
        print(f"int8 top-1 {report['top1']:.2%}, before {report['float32']:.2%}; left in float: {left_out}")
    folder = os.path.relpath(found.folder)
    print(f"next: vankit predict photo.jpg --model {folder}")
