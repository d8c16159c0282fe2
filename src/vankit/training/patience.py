"""The end of a run whose figure no longer gets better."""

from typing import Any

from lightning import Callback, LightningModule, Trainer


class StopEarly(Callback):
    """Ends a run after so many validations in a row without a better figure. All processes stop together.

    A figure that is NaN, as of images without objects, is not a better one. What has been waited is part of the state
    to resume, so that a run which has stopped is not continued unless with more patience.

    Args:
        patience: number of validations, at least 1.
        keep: what keeps the best weights; it has to come before this among the callbacks.
    """

    def __init__(self, patience: int, keep: Any) -> None:
        self.patience, self.keep = patience, keep
        self.best = -1.0
        self.waited = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_or_go_on(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.keep.best > self.best:
            self.best, self.waited = self.keep.best, 0
        else:
            self.waited += 1
        self._stop_or_go_on(trainer)

    def _stop_or_go_on(self, trainer: Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.waited >= self.patience, all=False):
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            validations = f"{self.waited} validation{'s' * (self.waited > 1)}"
            best = f"{self.keep.measure} than {self.keep.best:.2%}"
            print(f"stopped: no better {best} for {validations} (--patience {self.patience})", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
