"""SIGTERM and SIGINT: a run ends at its next step, with its state written."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE = 1.0  # seconds within which several signals are one: torchrun and `timeout` pass on what a group has got already


class Stopped(BaseException):
    """A signal has ended the run.

    Args:
        signum: which.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopOnSignal(Callback):
    """Ends a run at the next update, or at once if it is validating: the state before that is written. A second signal
    ends the process without further ado.

    All processes of a run stop at the same update, whichever of them got the signal.

    Args:
        keep: what writes the state; it has to come before this among the callbacks.

    Raises:
        Stopped: from its hooks.
    """

    def __init__(self, keep: Any) -> None:
        self.keep = keep
        self.signum, self._since = 0, 0.0
        self._handlers: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals meanwhile, but for one that is ignored; in the main thread, as Python has it."""
        if threading.current_thread() is threading.main_thread():
            found = {signum: signal.getsignal(signum) for signum in _SIGNALS}
            self._handlers = {signum: handler for signum, handler in found.items() if handler != signal.SIG_IGN}
        for signum in self._handlers:
            signal.signal(signum, self._handle)
        try:
            yield
            if self.signum:  # too late for a step to heed it
                self._say("stopped as it ended; --resume finishes it")
                raise Stopped(self.signum)
        except RuntimeError as error:
            if self.signum:  # it waited for another process, which the signal has ended first
                raise Stopped(self.signum) from error
            raise
        finally:
            self._restore()

    def _restore(self) -> None:
        for signum, handler in self._handlers.items():
            # None is one that was not set from Python, and cannot be
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # raising here would lose the signal while Python forks a process, and leave a step half done
        if not self.signum:
            self.signum, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since > _ONE:
            self._restore()
            signal.raise_signal(signum)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:  # gradients are no part of the state
            return
        if trainer.strategy.reduce_boolean_decision(bool(self.signum), all=False):
            self.keep.save_within_epoch(trainer, batch_idx)
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.signum:
            self._stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.on_validation_start(trainer, pl_module)

    @staticmethod
    def _say(line: str) -> None:
        if int(os.environ.get("RANK", 0)) == 0:
            with suppress(OSError):  # who reads it, such as tee, may have got the signal too
                print(line, flush=True)

    def _stop(self, trainer: Trainer) -> None:
        hint = "continue with --resume" if self.keep.has_state else "start again"
        self._say(f"stopped {self.keep.place(trainer)}; {hint}")
        raise Stopped(self.signum or signal.SIGTERM)


def leave_signals(_: int) -> None:
    """Have a process that loads images outlive the signals that end its parent, as they may reach both: Ctrl-C in a
    terminal, SIGTERM in a scheduler's job. It ends when its parent says so, or is gone.

    PyTorch sets a handler of SIGTERM in such a process, by which one that is not from the parent kills it; the parent's
    step then breaks off with an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # by getppid it may be a server of forks
    assert parent is not None
    if hasattr(signal, "sigwaitinfo"):  # which macOS lacks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(parent.pid,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
