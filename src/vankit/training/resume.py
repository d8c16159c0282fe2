"""A run that is to go on: what its folder holds, and whether what is asked for is the same run."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from vankit.data.reading import Reading
from vankit.errors import MissingFileError, UserError
from vankit.files import read_json, sha256_of
from vankit.models.description import Description
from vankit.models.weights import read_metadata
from vankit.training.recipes import DenseConfig, TrainConfig
from vankit.training.state import (
    PREVIOUS,
    STATE,
    State,
    hashes_in,
    names_in,
    place_of,
    read_state,
    restore_weights,
    within_epoch,
)

logger = logging.getLogger(__name__)

# which say what the network is, and its outputs mean
_OF_THE_NETWORK = ("model", "classes", "task", "head", "queries", "lka", "map_labels", "ignore_label")
# which decide the optimiser and its groups of parameters; a resumed one keeps those it has
_OF_THE_OPTIMISER = ("optimizer", "weight_decay", "layer_decay", "decay_norms")
# which decide what the batches of an epoch are
_OF_THE_ORDER = ("images", "processes", "batch_size", "accumulate", "seed", "balance")
# which change no number, or only when the run ends
_FREE = ("workers", "logger", "patience", "nan_tolerance")
# which hold when a run begins, or are compared by themselves
_OF_THE_START = ("pretrained", "checkpoint", "weights", "classes", "held_out", "thresholds", "preprocessing")
# what JSON has for the type of a setting
_IN_JSON: dict[type, Any] = {bool: int, int: int | float, float: int | float, str: str, tuple: list}
_KINDS = {
    f.name: _IN_JSON[type(f.default)]
    for kind in (TrainConfig, DenseConfig, Reading)
    for f in fields(kind)
    if type(f.default) in _IN_JSON
}
_SIZES = {"embed_dims", "depths", "mlp_ratios"}
_DIVISION = {"share", "seed", "total"}


@dataclass(frozen=True)
class Begun:
    """A run in its folder.

    Attributes:
        out: the folder.
        record: its settings, config.json.
        state: to resume from.
        whole: whether that is the last state; it is the one before if the last was damaged.
    """

    out: Path
    record: Mapping[str, Any]
    state: State
    whole: bool

    def check(self, record: Mapping[str, Any], description: Description, checkpoint: Any) -> None:
        """Refuse to continue it as another run.

        Args:
            record: settings that are asked for, with the number of training images and of processes.
            description: of the network.
            checkpoint: to start from, or None.

        Raises:
            ValueError: it is another network, has another optimiser, other data or another start, or goes on within an
                epoch whose batches would be others.
        """
        _check_same_run(self.out, self.record, record, description, checkpoint)
        changed = _changed({**self.record, **self.state.get("place", {})}, record, _OF_THE_ORDER)
        if changed and within_epoch(self.state):
            raise UserError(
                f"the run in {self.out} was stopped within epoch {place_of(self.state)[0] + 1}, whose batches would be "
                f"others with {', '.join(changed)}: use the same until that epoch is done"
            )

    def continued(self, record: Mapping[str, Any], say: bool) -> dict[str, Any]:
        """Settings from here on, with what the run keeps of its beginning.

        Args:
            record: settings that are asked for.
            say: log which are others than before.
        """
        if say:
            _say_changed(self.out, self.record, record)
        kept = {name: self.record[name] for name in ("checkpoint", "weights") if name in self.record}
        if self.record.get("logger") == record["logger"] and "logger_run" in self.record:
            kept["logger_run"] = self.record["logger_run"]
        return {**record, **kept}

    def check_fit(self, module: nn.Module) -> None:
        """Refuse a state whose weights are not those of a network.

        Raises:
            ValueError: they are not.
        """
        wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
        if {name: getattr(tensor, "shape", None) for name, tensor in self.state["state_dict"].items()} != wanted:
            raise UserError(
                f"the state in {self.out} is damaged, or of another network: choose another folder (--output) to start "
                "anew"
            )

    def restore_weights(self, write: bool) -> None:
        """Put right the weights' files where they do not go with the state.

        Args:
            write: whether this process writes.
        """
        if write:
            restore_weights(self.state, self.out)
        kept = self.state["callbacks"]["KeepWeights"]
        if kept["best"] >= 0 and self._lacks("best", "the best of the epochs to come takes its place"):
            kept["best"] = -1.0
        if place_of(self.state)[0]:
            self._lacks("last", "it is written anew after the next epoch")

    def check_best(self) -> None:
        """Refuse to call a run finished whose best weights `restore_weights` found lost.

        Raises:
            ValueError: they are.
        """
        if self.state["callbacks"]["KeepWeights"]["best"] < 0 and "best" in hashes_in(self.state):
            raise UserError(
                f"the run in {self.out} is finished, and its best weights are lost: use those of its last epoch, "
                f"{self.out / 'last.safetensors'}, or continue it with more --epochs"
            )

    def _lacks(self, name: str, remedy: str) -> bool:
        """Whether a file of weights that are not in the state is not what the run wrote, which is said."""
        path = self.out / f"{name}.safetensors"
        if name in names_in(self.state) or _is_whole(path, hashes_in(self.state).get(name)):
            return False
        logger.warning("%s is missing, damaged or not what the run wrote: %s", path, remedy)
        return True


def read_run(out: Path) -> Begun:
    """The run in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: what there is of it is damaged.
    """
    state, whole = read_state(out)
    return Begun(out, _read_record(out / "config.json"), state, whole)


def check_new(out: Path) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ValueError: it does.
    """
    if any((out / name).is_file() for name in (STATE, PREVIOUS)):
        raise UserError(f"{out} already holds a run: choose another folder (--output), or continue it with --resume")


def read_unstarted(out: Path) -> dict[str, Any] | None:
    """The settings of a run that was ended before it had a state, so that it has to begin again; None if it had one.

    Raises:
        ValueError: they are damaged.
    """
    path = out / "config.json"
    written = (STATE, PREVIOUS, "best.safetensors", "last.safetensors")
    if not path.is_file() or any((out / name).is_file() for name in written):
        return None
    record = _read_record(path)
    return record if record.keys() >= {"data", "model", "epochs"} else None  # else of another program


def start_over(
    out: Path,
    before: Mapping[str, Any],
    record: Mapping[str, Any],
    description: Description,
    checkpoint: Any,
    say: bool,
) -> None:
    """Say that the run in a folder begins again, as it had no state yet; refuse another run, see `Begun.check`.

    Args:
        out: the folder.
        before: settings of that run, see `read_unstarted`.
        record: settings that are asked for.
        description: of the network.
        checkpoint: to start from, or None.
        say: whether this process does.
    """
    _check_same_run(out, before, record, description, checkpoint)
    if say:
        _say_changed(out, before, record)
        print(f"no epoch of the run in {out} was finished: started from the beginning", flush=True)


def _read_record(path: Path) -> dict[str, Any]:
    anew = "choose another folder (--output) to start anew"
    try:
        record = read_json(path)
    except MissingFileError:
        raise MissingFileError(f"{path} is missing, which says what the run is: {anew}") from None
    except UserError as error:
        raise UserError(f"{error}; it says what the run is: {anew}") from None
    if wrong := [name for name, right in _right(record).items() if name in record and not right]:
        raise UserError(f"{path} is damaged, {wrong[0]} is {record[wrong[0]]!r:.80}: {anew}")
    return record


def _right(record: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the entries of config.json are of their kind, by name."""
    classes, sizes, division = (record.get(name) for name in ("classes", "sizes", "held_out"))
    run, thresholds = record.get("logger_run"), record.get("thresholds")
    return {
        "classes": isinstance(classes, list) and all(isinstance(name, str) for name in classes),
        "sizes": isinstance(sizes, dict)
        and sizes.keys() <= _SIZES
        and all(isinstance(values, list) and all(isinstance(v, int) for v in values) for values in sizes.values()),
        "held_out": division is None or (isinstance(division, dict) and division.keys() >= _DIVISION),
        "thresholds": isinstance(thresholds, list | None),
        "logger_run": isinstance(run, str | None),
        **{name: isinstance(record.get(name), kind) for name, kind in _KINDS.items()},
    }


def _is_whole(path: Path, sha256: str | None) -> bool:
    """Whether a weights file is the one with this hash, or, of a run of an earlier version, can be read."""
    try:
        return sha256_of(path) == sha256 if sha256 else "epoch" in read_metadata(path)
    except UserError:
        return False


def _changed(before: Mapping[str, Any], record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of some settings that have changed, as a user writes them; what is said on one side alone has not."""
    now = _plain(record)
    both = [name for name in names if name in before and name in now and before[name] != now[name]]
    return [f"{_option(name)} {now[name]} (before {before[name]})" for name in both]


def _say_changed(out: Path, before: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    compared = [name for name in record if name not in (*_FREE, *_OF_THE_START)]
    if changed := _changed(before, record, compared):
        logger.warning("the run in %s goes on with other settings than before: %s", out, ", ".join(changed))


def _plain(values: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(values))


def _option(name: str) -> str:
    return name if name in ("images", "processes", "data", "model") else f"--{name.replace('_', '-')}"


def _check_same_run(
    out: Path, before: Mapping[str, Any], record: Mapping[str, Any], description: Description, checkpoint: Any
) -> None:
    _check_network(out, before, description, record["model"])
    _check_optimiser(out, before, record)
    _check_division(out, before.get("held_out"), _plain(description.to_metadata()).get("held_out"))
    start = before.get("checkpoint", checkpoint)
    if checkpoint is not None and str(checkpoint) != str(start):
        raise UserError(
            f"the run in {out} was begun from {start or 'no checkpoint'}: leave out --checkpoint, or choose another "
            "folder (--output)"
        )


def _check_network(out: Path, record: Mapping[str, Any], description: Description, model: str) -> None:
    # which early runs do not say
    before: dict[str, Any] = {"lka": {}, "task": "classify", "map_labels": [], **record}
    for name, value in _plain({**description.to_metadata(), "model": model}).items():
        if name in _OF_THE_NETWORK and before.get(name) != value:
            same = f"pass the same settings ({_option(name)}), or " if name in _OF_THE_NETWORK[-3:] else ""
            raise UserError(
                f"{out} holds a run with {name} {before.get(name)}, not {value}: {same}choose another folder (--output)"
            )
    if bool(before.get("thresholds")) != description.multi_label:
        was = "not " * description.multi_label
        raise UserError(f"{out} holds a run on data that is {was}multi-label: choose another folder (--output)")


def _check_optimiser(out: Path, record: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before = {"optimizer": "adamw", **record}  # which early runs do not say
    frozen = "frozen" in (before.get("batch_norm"), now.get("batch_norm"))
    for name in (*_OF_THE_OPTIMISER, *(["batch_norm"] if frozen else [])):
        value = now.get(name)
        if before.get(name, value) != value:
            raise UserError(
                f"the run in {out} was begun with {_option(name)} {before[name]}, and its optimiser keeps that: pass "
                "the same settings, or choose another folder (--output)"
            )


def _check_division(out: Path, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Were other images held out, some that the run was trained on would be validated."""
    if before == now:
        return
    if before is None or now is None:
        kinds = ("a val split", "images held out of train")
        was, is_now = (kinds[division is not None] for division in (before, now))
        change, same = f"validated with {was}, and this data has {is_now}", "use the same data"
    elif before["total"] != now["total"]:
        change, same = f"begun with {before['total']} images, and there are {now['total']} now", "use the same data"
    else:
        change = f"begun with --val-share {before['share']} and --seed {before['seed']}"
        same = "pass the same settings"
    raise UserError(f"the run in {out} was {change}: {same}, or choose another folder (--output)")
