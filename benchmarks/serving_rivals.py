"""A server, the ceiling and the truth that benchmarks/serving.py compares `vankit serve` with; see serving_litserve.py.

    PYTHON benchmarks/serving_rivals.py fastapi WEIGHTS PORT           as a tutorial writes it, with eager PyTorch
    python benchmarks/serving_rivals.py predict FOLDER PHOTOGRAPHS SECONDS    what `vankit predict` does, no server
    python benchmarks/serving_rivals.py expected WEIGHTS PHOTOGRAPHS          what all have to answer

WEIGHTS are of van_b0 with ImageNet's classes, FOLDER is the same network exported. PYTHON has vankit, litserve==0.2.19
and fastapi[standard], which brings uvloop and httptools.
"""

import itertools
import json
import sys
import time
from pathlib import Path


def eager(weights):
    """The network and its preprocessing as most scripts get them from timm."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    import vankit  # noqa: F401  (registers van_b0)

    model = timm.create_model("van_b0", checkpoint_path=weights).eval()
    return model, create_transform(**resolve_model_data_config(model))


def fastapi(weights, port):
    import torch
    import uvicorn
    from fastapi import FastAPI, UploadFile
    from PIL import Image

    app = FastAPI()
    model, transform = eager(weights)

    @app.post("/predict")
    def predict(file: UploadFile):
        x = transform(Image.open(file.file).convert("RGB"))[None]
        with torch.inference_mode():
            score, index = model(x).softmax(1)[0].max(0)
        return {"index": index.item(), "score": score.item()}

    uvicorn.run(app, host="127.0.0.1", port=int(port))


def predict(folder, photographs, seconds):
    """Pictures per second of `vankit predict`, once it runs."""
    from vankit import Predictor

    start, count = 0.0, 0
    paths = sorted(map(str, Path(photographs).glob("*.jpg")))
    for number, found in enumerate(Predictor(folder).stream(itertools.cycle(paths))):
        if found.error:
            raise SystemExit(found.error)
        now = time.perf_counter()
        if number == len(paths):
            start, count = now, 0
        count += 1
        if start and now - start > float(seconds):
            break
    print(json.dumps({"requests_per_s": (count - 1) / (now - start)}))


def expected(weights, photographs):
    """Index and score of each photograph's best class."""
    import torch
    from PIL import Image

    model, transform = eager(weights)
    found = []
    with torch.inference_mode():
        for path in sorted(Path(photographs).glob("*.jpg")):
            score, index = model(transform(Image.open(path).convert("RGB"))[None]).softmax(1)[0].max(0)
            found.append((index.item(), score.item()))
    print(json.dumps(found))


if __name__ == "__main__":
    parts = {"fastapi": fastapi, "predict": predict, "expected": expected}
    parts[sys.argv[1]](*sys.argv[2:])
