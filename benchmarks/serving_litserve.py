"""LitServe, which benchmarks/serving.py compares `vankit serve` with, as its guide has it: base64 in JSON.

    PYTHON benchmarks/serving_litserve.py eager WEIGHTS PORT     with the network in eager PyTorch
    PYTHON benchmarks/serving_litserve.py vankit FOLDER PORT     with vankit.Predictor

There is a worker per core. WEIGHTS and PYTHON are those of serving_rivals.py.
"""

import base64
import io
import os
import sys

import litserve
from PIL import Image


class Eager(litserve.LitAPI):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def setup(self, device):
        import torch
        from serving_rivals import eager

        torch.set_num_threads(1)  # or the workers fight for the cores
        self.torch = torch
        model, self.transform = eager(self.weights)
        self.model = model.to(device)

    def decode_request(self, request):
        image = Image.open(io.BytesIO(base64.b64decode(request["image_data"]))).convert("RGB")
        return self.transform(image)[None].to(self.device)

    def predict(self, x):
        with self.torch.inference_mode():
            return self.model(x).softmax(1)[0].max(0)

    def encode_response(self, output):
        return {"index": output.indices.item(), "score": output.values.item()}


class Vankit(litserve.LitAPI):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def setup(self, device):
        from vankit import Predictor

        self.predictor = Predictor(self.folder, top_k=1)
        self.run = self.predictor.engine.worker()  # on one core, as the other worker needs its own

    def decode_request(self, request):
        return self.predictor.preprocess(base64.b64decode(request["image_data"]))

    def predict(self, x):
        return self.predictor.labels(self.run(x[None])[0])[0]

    def encode_response(self, output):
        return {"index": output.index, "score": output.score}


if __name__ == "__main__":
    kind, source, port = sys.argv[1:]
    api = {"eager": Eager, "vankit": Vankit}[kind](source)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0)))
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False)
