"""The README.md of an exported detector or segmenter."""

from typing import Any

from vankit.deploy.card import IMPORTS, TITLES, WITH_TORCH, int8_section
from vankit.deploy.folder import Exported

_OUTPUTS = {
    "boxes": "`boxes`: float32 (1, N, 5), best first: x1, y1, x2, y2 as fractions of the picture's width and height,\n"
    "  and the score, 0 to 1.",
    "labels": "`labels`: int64 (1, N), the index of each one's class in `labels.txt`.",
    "logits": "`logits`: float32 (1, C, height, width); the largest of the C classes is the pixel's.",
    "segments": "`segments`: int64 (1, height, width): 0 for none, i + 1 for segment i.",
    "scores": "`scores`: float32 (1, N), 0 to 1, of the segments.",
}
_IN_BOX = (
    "`masks`: float32 (1, N, 28, 28), how likely each part of an object's box is the object, 0 to 1; vankit puts them\n"
    "  into the picture as torchvision does."
)
_WHOLE = "`masks`: uint8 (1, N, height, width), 1 where the object is."
_LOOPS = {
    "detect": """for (x1, y1, x2, y2, score), label in zip(found["boxes"][0], found["labels"][0], strict=True):
    if score >= 0.3:
        box = x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height
        print(names[label], round(float(score), 2), [round(float(side)) for side in box])""",
    "segment": """classes = found["logits"][0].argmax(0)  # (height, width)
for label in np.unique(classes):
    print(names[label], f"{(classes == label).mean():.0%}")""",
    "panoptic": """for i, label in enumerate(found["labels"][0], 1):
    print(names[label], f"{(found['segments'][0] == i).mean():.0%}")""",
}


def dense_card(exported: Exported, folder: str) -> str:
    """
    Args:
        exported: with the facts that `vankit.export` gives it.
        folder: the name that it will have.

    Returns:
        Markdown.
    """
    facts, head = exported.facts, exported.description.head
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    outputs = "\n".join(f"- {_meaning(name, head)}" for name in exported.outputs)
    height, width = exported.size or ("height", "width")
    parts = "backbone and head" if exported.size else "resizing, backbone, head, and the choice of the best objects"
    picture = "a picture, resized bilinearly to that" if exported.size else "a picture of any size, as it is"
    needed = "with" if exported.format in WITH_TORCH else "without"
    return f"""# {facts["name"]} ({head}) for {TITLES[exported.format]}{", int8" * (exported.precision == "int8")}

Made on {facts["date"]} with {versions} by

```bash
{facts["command"]}
```

The whole network is in the model: {parts}. The norms, layer scales
and inner shortcuts of the backbone are in its convolutions.

## Run it

From the folder that holds this one, {needed} PyTorch:

```bash
vankit predict photo.jpg --model {folder}
```

Without vankit:

```python
{_snippet(exported, folder)}```

## Input and output

- `image`: uint8 (1, {height}, {width}, 3), red, green, blue: {picture}.
{outputs}

## Checks

{_compared(facts)}
{int8_section(exported)}"""


def _compared(facts: dict[str, Any]) -> str:
    found = facts["agreement"]
    allowed = found["tolerance"]
    before = " before it was quantised" if "int8" in facts else ""
    text = f"Compared with PyTorch{before}, {facts['agreed']}."
    if facts["half"]:
        text += " Weights are stored in 16 bits."
    if found["same"]:
        text += f"""
The same are objects of one class with boxes or segments of IoU {allowed["box"]} or more and scores within
{allowed["score"]}; the largest difference of those scores is {found["score_difference"]:.1e}."""
    return text


def _meaning(name: str, head: str | None) -> str:
    if name == "masks":
        return _WHOLE if head == "mask2former" else _IN_BOX
    return _OUTPUTS[name]


def _snippet(exported: Exported, folder: str) -> str:
    names = ", ".join(f'"{name}"' for name in exported.outputs)
    config = "" if exported.precision == "int8" else ', {"INFERENCE_PRECISION_HINT": "f32"}'  # else bf16 on some CPUs
    run = {
        "openvino": f"""model = openvino.Core().compile_model("{folder}/model.xml", "CPU"{config})
found = model(np.asarray(image)[None])""",
        "onnx": f"""session = onnxruntime.InferenceSession("{folder}/model.onnx", providers=["CPUExecutionProvider"])
outputs = [{names}]
found = dict(zip(outputs, session.run(outputs, {{"image": np.asarray(image)[None]}}), strict=True))""",
        "executorch": f"""program = Runtime.get().load_program("{folder}/model.pte")
(logits,) = program.load_method("forward").execute([torch.from_numpy(np.array(image)[None])])
found = {{"logits": logits.numpy()}}""",
        "litert": f"""model = Interpreter("{folder}/model.tflite").get_signature_runner()
found = model(image=np.asarray(image)[None])""",
    }
    resized = f".resize({exported.size[::-1]}, Image.Resampling.BILINEAR)" if exported.size else ""
    return f"""import numpy as np
{IMPORTS[exported.format]}

image = Image.open("photo.jpg").convert("RGB"){resized}
{run[exported.format]}
with open("{folder}/labels.txt", encoding="utf-8") as file:
    names = file.read().splitlines()
{_LOOPS[exported.description.task]}
"""
