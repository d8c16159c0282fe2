"""The README.md of an exported folder: how to run the model, what it takes and gives, how it was made and checked."""

from typing import Any

from vankit.deploy.folder import Exported
from vankit.engines.base import CLASS_MAPS

TITLES = {
    "openvino": "OpenVINO", "onnx": "ONNX", "pt2": "torch.export", "executorch": "ExecuTorch", "litert": "LiteRT",
}  # fmt: skip
WITH_TORCH = ("pt2", "executorch")
_SCORES = (
    "Their softmax are the scores.",
    "The sigmoid of each is its score; a picture has every class whose score\n  reaches the class's threshold in "
    "`thresholds` of `export.json`, and perhaps none.",
)
_MAPS = f"""
- Output `{CLASS_MAPS}`: float32 (batch, classes, h, w), where in the picture the evidence for each class is: Grad-CAM
  at the last stage, 0 or more, of 1/32 of the picture's sides."""
_BEST = "    print(file.read().splitlines()[logits.argmax()])"
IMPORTS = {
    "openvino": "import openvino\nfrom PIL import Image",
    "onnx": "import onnxruntime\nfrom PIL import Image",
    "pt2": "import torch\nfrom PIL import Image",
    "executorch": "import torch\nfrom executorch.runtime import Runtime\nfrom PIL import Image",
    "litert": "from ai_edge_litert.interpreter import Interpreter\nfrom PIL import Image",
}


def model_card(exported: Exported, folder: str) -> str:
    """
    Args:
        exported: with the facts that `vankit.export` gives it.
        folder: the name that it will have.

    Returns:
        Markdown.
    """
    facts, preprocessing = exported.facts, exported.preprocessing
    _, height, width = preprocessing.input_size
    cover_height, cover_width = exported.preprocessing.cover()
    shape, outputs = f"(1, 3, {height}, {width})", len(exported.description.classes)
    if exported.dynamic:
        shape = f"(batch, 3, height, width) from 33 pixels up, such as {shape}"
    images, logits = ("", "") if exported.format in WITH_TORCH else (" `images`", " `logits`")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"""# {facts["name"]} for {TITLES[exported.format]}{", int8" * (exported.precision == "int8")}

Made on {facts["date"]} with {versions} by

```bash
{facts["command"]}
```

The network is folded: its norms, layer scales and inner shortcuts are in its convolutions.

## Run it

From the folder that holds this one, {"with" if exported.format in WITH_TORCH else "without"} PyTorch:

```bash
vankit predict photo.jpg --model {folder}
```

Without vankit:

```python
{_snippet(exported, folder)}```

## Input and output

- Input{images}: float32 {shape}, channels in the order red, green, blue.
- Preprocessing (`preprocessing.json`): decode to RGB; resize with Pillow's {preprocessing.interpolation} filter until
  the picture just covers {cover_width} × {cover_height} pixels (width × height); cut out the central
  {width} × {height}; (value / 255 − mean) / std with mean {list(preprocessing.mean)} and
  std {list(preprocessing.std)}.
- Output{logits}: float32 ({"batch" if exported.dynamic else 1}, {outputs}), a logit per class in the order of
  `labels.txt`. {_SCORES[exported.description.multi_label]}{_MAPS * (CLASS_MAPS in exported.outputs)}

## Checks

In float32 no logit was further than {facts["largest_difference"]:.1e} from eager PyTorch's ({_allowed(facts)}),
and every top-1 was the same.
{int8_section(exported)}"""


def _allowed(facts: dict[str, Any]) -> str:
    return "0.02 is allowed, as weights are stored in 16 bits" if facts["half"] else "1e-4 is allowed"


def _snippet(exported: Exported, folder: str) -> str:
    preprocessing = exported.preprocessing
    _, height, width = preprocessing.input_size
    cover_height, cover_width = exported.preprocessing.cover()
    config = "" if exported.precision == "int8" else ', {"INFERENCE_PRECISION_HINT": "f32"}'  # else bf16 on some CPUs
    run = {
        "openvino": f"""model = openvino.Core().compile_model("{folder}/model.xml", "CPU"{config})
logits = model(x)[0][0]""",
        "onnx": f"""session = onnxruntime.InferenceSession("{folder}/model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {{"images": x}})[0][0]""",
        "pt2": f"""model = torch.export.load("{folder}/model.pt2").module()
with torch.inference_mode():
    logits = model(torch.from_numpy(x))[0].numpy()""",
        "executorch": f"""program = Runtime.get().load_program("{folder}/model.pte")
logits = program.load_method("forward").execute([torch.from_numpy(x)])[0][0].numpy()""",
        "litert": f"""model = Interpreter("{folder}/model.tflite").get_signature_runner()
logits = model(images=x)["logits"][0]""",
    }
    return f"""{"import json" + chr(10) + chr(10) if exported.description.multi_label else ""}import numpy as np
{IMPORTS[exported.format]}

image = Image.open("photo.jpg").convert("RGB")
scale = max({cover_width} / image.width, {cover_height} / image.height)
size = round(image.width * scale), round(image.height * scale)
left, top = round((size[0] - {width}) / 2), round((size[1] - {height}) / 2)
image = image.resize(size, Image.Resampling.{preprocessing.interpolation.upper()})
image = image.crop((left, top, left + {width}, top + {height}))
x = (np.asarray(image) / 255 - {list(preprocessing.mean)}) / {list(preprocessing.std)}
x = x.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, {height}, {width})
{run[exported.format]}
with open("{folder}/labels.txt", encoding="utf-8") as file:
{_several(folder) if exported.description.multi_label else _BEST}
"""


def _several(folder: str) -> str:
    return f"""    names = file.read().splitlines()
with open("{folder}/export.json", encoding="utf-8") as file:
    thresholds = json.load(file)["thresholds"]
scores = 1 / (1 + np.exp(-logits))
print([name for name, score, threshold in zip(names, scores, thresholds) if score >= threshold])"""


def int8_section(exported: Exported) -> str:
    """The table of what was tried; empty for a network that is not quantised."""
    report = exported.facts.get("int8")
    if report is None:
        return ""
    rows = []
    for attempt in report["attempts"]:
        kept = attempt["precision"] == "int8" and attempt["left_out"] == report["left_out"]
        cells = attempt["precision"], ", ".join(attempt["left_out"]), f"{attempt['score']:.2%}"
        rows.append(f"| {' | '.join(cells)} | {attempt['milliseconds']:.1f} | {'yes' if kept else ''} |")
    name = report["measure"]
    title, labelled = ("Top-1", "is the accuracy") if name == "top-1" else (name, "is measured")
    measure = labelled if report["labelled"] else "is the agreement with float32"
    table = "\n".join(rows)
    return f"""
int8 was calibrated on {report["calibration_images"]:,} images. {title} {measure} on {report["images"]:,} images;
the times are rough ones, for one image on the machine that exported.

| precision | left in float | {name} | ms | kept |
|---|---|---|---|---|
{table}
"""
