"""Numbers that are not finite: kept out of a network under training, and out of what its run writes."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vankit.errors import UserError

logger = logging.getLogger(__name__)

ADVICE = "lower the learning rate (--lr), limit the gradients (--clip-grad), or use --precision 32-true"


class KeepFinite(Callback):
    """Leaves out steps whose loss or gradients are not finite, or stops the run.

    A step is an update of the weights. One bad batch spoils the sum of all that an update accumulates, so all of them
    are left out. The network, running statistics included, then stays as it was before the step. Steps left out count
    for the schedule. All processes decide alike.

    A state to resume that is not finite stops the run before it is written.

    Args:
        tolerance: steps that may be left out.
        last_good: says where the last good weights are, for the message.

    Raises:
        ValueError: from its hooks, to stop the run.
    """

    def __init__(self, tolerance: int, last_good: Callable[[], str]) -> None:
        self.tolerance, self.last_good = tolerance, last_good
        self.left_out = 0
        self._losses: list[Tensor] = []
        self._buffers: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        self._losses = []
        if self.tolerance:  # else nothing is left out, so nothing has to be undone
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        numbers = self._losses
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # which leaves out bad gradients itself
            numbers = [*numbers, _largest_gradient(optimizer)]
        if not _any_process_has_bad(numbers, trainer):
            return
        what = "loss is" if _any_process_has_bad(self._losses, trainer) else "gradients are"
        place = f"the {what} not finite in epoch {trainer.current_epoch + 1}, step {trainer.global_step + 1}"
        if self.left_out >= self.tolerance:
            before = f" (steps left out before: {self.left_out})" if self.left_out else ""
            more = "or allow more steps to be left out (--nan-tolerance)"
            raise UserError(f"{place}{before}: {ADVICE}, {more}; {self.last_good()}")
        self.left_out += 1
        if trainer.is_global_zero:
            logger.warning("%s: the step is left out (%d of at most %d)", place, self.left_out, self.tolerance)
        optimizer.zero_grad()  # without gradients the optimiser does nothing
        for buffer, before_step in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(before_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if _any_process_has_bad(_tensors_in(checkpoint), trainer):
            place = f"the weights or the optimiser's state are not finite after epoch {trainer.current_epoch + 1}"
            raise UserError(f"{place}, step {trainer.global_step}: {ADVICE}; {self.last_good()}")

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.left_out = state_dict["left_out"]


def _largest_gradient(optimizer: Optimizer) -> Tensor:
    """The largest absolute value of all gradients, which a single bad one makes NaN or infinite."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return get_total_norm(gradients, norm_type=math.inf)


def _any_process_has_bad(tensors: Any, trainer: Trainer) -> bool:
    """Whether a number of these is not finite, in any process; each has to call it."""
    bad = not all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    return trainer.strategy.reduce_boolean_decision(bad, all=False)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(inner)
