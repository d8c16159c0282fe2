"""Lightning without its advice."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# what the config has decided, or the version that began the run; to gather figures that are of all processes already;
# a loader that begins within an epoch, as ours does; and a deprecation in its own code
_ADVICE = (
    ".*does not have many workers",
    ".*callbacks used to create the checkpoint need to be provided",
    ".*recommended to use `self.log.*sync_dist=True",
    "You're resuming from a checkpoint that ended before the epoch ended",
    ".*LeafSpec.*is deprecated",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep back its advice, and what it announces of hardware and products: importing it sets the level for that."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
