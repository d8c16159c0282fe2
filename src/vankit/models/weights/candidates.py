"""Which tensors of a file are a VAN's: found by their names at any depth, raw or averaged."""

import logging
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, get_args

from torch import Tensor

from vankit.errors import UserError
from vankit.models.description import Weights
from vankit.models.weights.formats import Place, not_a_van, places
from vankit.models.weights.pickles import Opaque, StoredTensor, attributes, entries

logger = logging.getLogger(__name__)

# put around modules by torch.compile, FSDP and activation checkpointing, anywhere in a name
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_EMA = re.compile(r"(?:(?:^|[._])(?i:ema|averaged|swa)|(?<=[a-z])(?:Ema|EMA))(?:[._]|$)")
_DEEPEST = 64  # levels of a file that are looked at; real ones have about six


@dataclass(frozen=True, eq=False)
class Candidate:
    """A VAN in a file.

    Attributes:
        path: keys that lead to the mapping it is in.
        tensors: the whole mapping.
        place: where in it the VAN is.
        averaged: whether these are moving averages (EMA) of a network's weights.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Any]
    place: Place
    averaged: bool

    @property
    def where(self) -> str:
        """For messages, such as "state_dict_ema" or "state_dict, names that begin with model."."""
        prefix = f"names that begin with {self.place.prefix}" if self.place.prefix else ""
        return ", ".join(filter(None, (".".join(self.path), prefix))) or "the top"


def find_van(content: Any, weights: Weights | None, path: Path) -> Candidate:
    """The VAN in a file's content. Averaged weights are taken where there are both; what was chosen is logged.

    Args:
        content: see `PickleFile`, or named tensors.
        weights: raw or ema to insist on one.
        path: the file, for messages.

    Raises:
        ValueError: there is no VAN, or not of the weights asked for.
    """
    if weights not in (None, *get_args(Weights)):
        raise UserError(f"weights is {weights!r}: expected {' or '.join(get_args(Weights))}")
    groups = list(_mappings(content))
    if not groups:
        raise UserError(f"{path} holds no state dict: expected named tensors")
    found = [
        Candidate(keys, tensors, place, _averaged(keys, tensors, place, content))
        for keys, tensors in groups
        for place in places(tensors)
    ]
    if not found:
        raise UserError(f"{path}: {not_a_van(groups[0][1])}")
    kinds = {candidate.averaged for candidate in found}
    if weights is not None and (weights == "ema") not in kinds:
        only = "averaged (EMA)" if True in kinds else "raw"
        raise UserError(f"{path} holds only {only} weights: leave out weights={weights!r} (--weights {weights})")
    averaged = True in kinds if weights is None else weights == "ema"
    wanted = [candidate for candidate in found if candidate.averaged == averaged]
    if weights is None and len(kinds) == 2:
        logger.warning(
            "%s holds raw weights and their moving average (EMA): taken the average, from %s; --weights raw takes the "
            "others", path, wanted[0].where,
        )  # fmt: skip
    if len(wanted) > 1:
        others = "; ".join(candidate.where for candidate in wanted[1:4])
        logger.warning("%s holds %d VANs: taken %s, not %s", path, len(wanted), wanted[0].where, others)
    return wanted[0]


def _mappings(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The named tensors of every dict and pickled module, outermost first, and the keys that lead there."""
    queue: deque[tuple[tuple[str, ...], Any, int]] = deque([((), content, 0)])
    seen: set[int] = set()
    while queue:
        keys, node, depth = queue.popleft()
        if id(node) in seen or depth > _DEEPEST:  # it may contain itself
            continue
        seen.add(id(node))
        tensors = _module_tensors(node) if _is_module(node) else _tensors(node)
        if tensors:
            yield keys, {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
        if not _is_module(node):
            queue.extend((keys if key is None else (*keys, key), child, depth + 1) for key, child in _children(node))


def _tensors(node: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in entries(node).items()
        if isinstance(name, str) and isinstance(value, Tensor | StoredTensor)
    }


def _children(node: Any) -> Iterator[tuple[str | None, Any]]:
    for name, child in entries(node).items():
        if isinstance(child, Mapping | list | tuple | Opaque):
            yield (name if isinstance(name, str) else None), child
    values = node.values if isinstance(node, Opaque) else node
    if isinstance(values, list | tuple):
        yield from ((None, child) for child in values if isinstance(child, Mapping | list | tuple | Opaque))


def _is_module(node: Any) -> TypeGuard[Opaque]:
    """Of `torch.save(model, path)`."""
    return isinstance(node, Opaque) and isinstance(attributes(node).get("_modules"), Mapping)


def _module_tensors(module: Opaque) -> dict[str, Any]:
    """The state dict of a pickled module."""
    tensors: dict[str, Any] = {}
    queue: deque[tuple[str, Opaque, int]] = deque([("", module, 0)])
    seen: set[int] = set()
    while queue:
        prefix, node, depth = queue.popleft()
        if id(node) in seen or depth > _DEEPEST:
            continue
        seen.add(id(node))
        for kind in ("_parameters", "_buffers"):
            own = attributes(node).get(kind)
            tensors |= {prefix + name: value for name, value in _tensors(own).items()}
        for name, child in entries(attributes(node).get("_modules")).items():
            if isinstance(child, Opaque) and isinstance(name, str):
                queue.append((f"{prefix}{name}.", child, depth + 1))
    return tensors


def _averaged(keys: tuple[str, ...], tensors: Mapping[str, Any], place: Place, content: Any) -> bool:
    """Whether weights are moving averages, by the names that lead to them, and by what frameworks swap on writing."""
    top = content if isinstance(content, Mapping) else {}
    theirs = top.get("ema_state_dict")
    if "current_model_state" in top:  # Lightning's WeightAveraging: the average is where the weights used to be
        return keys[:1] == ("state_dict",)
    if isinstance(theirs, Mapping) and "steps" in theirs:  # mmengine's EMAHook does the same
        return keys[:1] == ("state_dict",)
    prefixes = (place.prefix[: match.start()] for match in re.finditer(r"module\.", place.prefix))
    of_torch = any(f"{prefix}n_averaged" in tensors for prefix in prefixes)  # AveragedModel's
    return of_torch or bool(_EMA.search(".".join((*keys, place.prefix))))
