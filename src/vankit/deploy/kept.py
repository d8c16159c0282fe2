"""Detectors and segmenters of checkpoints as whole models in the cache, so that the next start needs no PyTorch.

A conversion and its comparison take as long as those of `vankit export`, so the command line does them once its answers
are out, and only where it is used from a terminal. What differs from PyTorch or cannot be converted goes on as it is,
and is not tried again.
"""

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from vankit.deploy.folder import with_best_class
from vankit.deploy.opening import Network
from vankit.engines.cache import keep, recall
from vankit.engines.openvino import OpenVinoEngine, has_kept_model, kept_model
from vankit.errors import UserError
from vankit.models.description import Description

logger = logging.getLogger(__name__)

_WAITING: ContextVar[list[Network] | None] = ContextVar("_WAITING", default=None)
_TRIES = 2  # what takes all memory ends the process each time, and a power failure once


@dataclass(frozen=True)
class Kept:
    """The whole model of a network, in place of an exported folder.

    Attributes:
        opened: the network, which is asked for its module only if the model is gone from the cache.
        key: of it.
        outputs: names of what the model gives, see `vankit.deploy.folder.OUTPUTS`.
        lowest_score: of the objects that its head keeps by itself.
    """

    opened: Network
    key: bytes
    outputs: Sequence[str]
    lowest_score: float

    @property
    def description(self) -> Description:
        """Of the network."""
        return self.opened.description

    @property
    def size(self) -> Sequence[int]:
        """Empty: it takes every size."""
        return ()

    def engine(
        self, engine: str = "auto", precision: str = "auto", device: str = "auto", cached: bool = True
    ) -> OpenVinoEngine:
        """OpenVINO in float32 on the CPU, whatever the options say: other ways were not compared."""
        return OpenVinoEngine(lambda: kept_model(self.key, self._convert), self.key if cached else None, winograd=True)

    def _convert(self) -> Any:
        from vankit.deploy.whole import Whole

        return _openvino_model(Whole(_for_conversion(self.opened), self.description))


def _openvino_model(whole: Any) -> Any:
    model = whole.to_openvino()
    return with_best_class(model) if whole.task == "segment" else model


def _for_conversion(opened: Network) -> Any:
    return copy.deepcopy(opened.module).float().cpu()  # type: ignore[union-attr]


def kept_whole(opened: Network) -> Kept | None:
    """The whole model of a network that is remembered; None if there is none, or the module may have been changed."""
    remembered = opened.remembered
    if remembered is None or remembered.is_open or "outputs" not in (found := _decision(remembered.key)):
        return None
    return Kept(opened, remembered.key, found["outputs"], found["lowest_score"])


def keep_whole(opened: Network) -> None:
    """Convert a detector or segmenter, compare it with PyTorch as `vankit export` does, and keep what came of it.

    Nothing is done where that is known, or where nothing can be kept. Why one is refused is logged, once.

    Args:
        opened: by a checkpoint.
    """
    key = opened.key
    before = _decision(key) or {"begun": 0}
    if "begun" not in before:
        return
    _decide(key, {"begun": before["begun"] + 1})
    if not _decision(key):
        return
    try:
        found = _converted(opened, key) if before["begun"] < _TRIES else {"refused": "its conversion did not end"}
    except (KeyboardInterrupt, SystemExit):
        _decide(key, before)
        raise
    if "refused" in found:
        logger.warning("%s keeps its head on PyTorch: %s", opened.source, found["refused"])
    if "refused" in found or has_kept_model(key):  # else the disk is full
        _decide(key, found)


def _converted(opened: Network, key: bytes) -> dict[str, Any]:
    from vankit.deploy.whole import Whole, agreement, lowest_score, scenes

    network = _for_conversion(opened)
    try:
        whole = Whole(network, opened.description)
        kept_model(key, lambda: _openvino_model(whole))
        kept = Kept(opened, key, whole.names, lowest_score(network))
        found = agreement(kept, network, scenes(), cached=True)
        found.check()
    except UserError as error:
        return {"refused": str(error)}
    if found.is_empty:
        return {"refused": "nothing was found in the pictures that were compared"}
    return {"outputs": kept.outputs, "lowest_score": kept.lowest_score}


def _decision(key: bytes) -> dict[str, Any]:
    """The model's outputs and lowest score, why it was refused, or how often its conversion was begun; else nothing."""
    found: dict[str, Any] = json.loads(recall(key, b"whole") or b"{}")
    return {} if "outputs" in found and not has_kept_model(key) else found


def _decide(key: bytes, found: dict[str, Any]) -> None:
    keep(json.dumps(found).encode(), key, b"whole")


@contextmanager
def collecting() -> Iterator[list[Network]]:
    """The networks that run on PyTorch within the block although they might run whole; for `keep_whole`."""
    networks: list[Network] = []
    token = _WAITING.set(networks)
    try:
        yield networks
    finally:
        _WAITING.reset(token)


def collect(opened: Network, score: float) -> None:
    """Name a network to those who are `collecting`, if its whole model would give a detector's objects from a score on.

    Args:
        opened: with a module.
        score: lowest one that is asked for.
    """
    networks = _WAITING.get()
    if networks is not None and opened.own and (opened.description.task != "detect" or score >= _lowest_score(opened)):
        networks.append(opened)


def _lowest_score(opened: Network) -> float:
    from vankit.deploy.whole import lowest_score

    assert opened.module is not None
    return lowest_score(opened.module)
