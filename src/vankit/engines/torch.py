"""PyTorch: compiled on CUDA devices, eager elsewhere. Imported only where PyTorch is wanted."""

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from numpy.typing import NDArray

from vankit.engines.base import Array, Engine, cores
from vankit.errors import UserError

logger = logging.getLogger(__name__)


class TorchEngine(Engine):
    """PyTorch: compiled on CUDA devices, eager elsewhere, channels_last.

    Args:
        network: a module in eval mode, (B, C, H, W) → (B, …).
        device: torch's name.
        precision: float32 or bf16 (autocast).
        batch_size: images that a worker is best given at once.
    """

    name = "torch"

    def __init__(self, network: Any, device: str, precision: str = "float32", batch_size: int = 16) -> None:
        import torch

        if precision == "int8":
            raise UserError("engine torch computes in float32 or bf16: for int8 see vankit export --int8")
        self.precision, self.batch_size, self.workers = precision, batch_size, cores()
        self._device = torch.device(device)
        network = network.to(memory_format=torch.channels_last).to(self._device)
        self._network = self._eager = network
        if self._device.type == "cuda":
            self._network = torch.compile(network)
        self._lock = threading.Lock()  # one forward pass uses all of the device; workers prepare images meanwhile

    def __call__(self, x: Array) -> Array:
        return self.outputs(x)[0]

    def outputs(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        import torch

        kind = self._device.type
        autocast = torch.autocast(kind, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        # float32 means it: cuDNN would round the inputs of convolutions to TF32
        cudnn = torch.backends.cudnn
        exact: Any = nullcontext()
        if kind == "cuda":  # what is not named here would be switched off
            exact = cudnn.flags(cudnn.is_available(), cudnn.benchmark, cudnn.deterministic, allow_tf32=False)
        with self._lock, torch.inference_mode(), autocast, exact:
            images = torch.from_numpy(x).to(self._device, memory_format=torch.channels_last)
            found = self._run(images)
            return [y.float().cpu().numpy() for y in (found if isinstance(found, list | tuple) else [found])]

    def _run(self, images: Any) -> Any:
        import torch._dynamo.exc

        try:
            return self._network(images)
        except torch._dynamo.exc.TorchDynamoException as error:  # of Triton or a C compiler that is not there, say
            if self._network is self._eager:
                raise
            logger.warning("running uncompiled: %s", str(error).strip().partition("\n")[0])
            self._network = self._eager
            return self._network(images)

    def worker(self) -> Callable[[Array], Array]:
        return self
