"""A process that is killed while it writes a state: whenever that is, the next one finds a state with its own weights,
never a mixture of two, nor nothing."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from vankit.errors import MissingFileError
from vankit.files import clear_partials
from vankit.models.weights import read_metadata
from vankit.training.state import PREVIOUS, STATE, State, StateFile, read_state, restore_weights

BOTH = ("best", "last")
FOUR = {STATE, PREVIOUS, "best.safetensors", "last.safetensors"}

Names = tuple[str, ...]  # of the weights that are written with a state
Files = dict[str, bytes]  # in a folder


@pytest.fixture(params=["links", "no links"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file may have two names. A kill takes nothing from the system, so that it need not be flushed."""

    def refuse(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(os, "fsync", lambda _: None)
    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


def state_of(epoch: int, names: Names) -> State:
    """A state whose numbers all say of which epoch it is."""
    return {
        "state_dict": {"model.weight": torch.full((3,), float(epoch))},
        "loops": {"fit_loop": {}},
        "callbacks": {"KeepWeights": {"best": epoch / 10, "measure": "top-1"}},
        "optimizer_states": [{"moment": torch.full((3,), float(epoch))}],
        "place": {"epoch": epoch, "batch": 0 if names else 1, "images": 8, "processes": 1},
        "weights": {"names": names, "metadata": {"epoch": epoch}},
    }


def write(out: Path, epoch: int, names: Names, resumed: tuple[State, bool] | None = None) -> None:
    StateFile(*resumed or ()).save_checkpoint(state_of(epoch, names), out / STATE)


def resume(out: Path) -> tuple[State, bool]:
    """What `vankit.train` does before it goes on."""
    found = read_state(out)
    restore_weights(found[0], out)
    clear_partials(out)
    return found


def kills(out: Path, act: Callable[[], Any]) -> list[Files]:
    """What kill -9 would leave in a folder at any time: what the system has there before each call that Python makes of
    the system or of a file, and at the end.
    """
    left = [files_in(out)]

    def look(_: Any, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ in ("fspath", "stat", "lstat"):  # which change nothing
            return
        of_a_file = isinstance(getattr(function, "__self__", None), io.RawIOBase | io.BufferedIOBase)
        if of_a_file or function.__module__ in ("posix", "nt", "io", "_io"):
            note()

    def note() -> None:
        if (files := files_in(out)) != left[-1]:
            left.append(files)

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    note()
    return left


def files_in(out: Path) -> Files:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def folder_of(out: Path, files: Files) -> Path:
    out.mkdir(exist_ok=True)
    for path in out.iterdir():
        path.unlink()
    for name, content in files.items():
        (out / name).write_bytes(content)
    return out


def weights_in(out: Path) -> dict[str, int]:
    """Which epoch the weights are of, as they say and as they are."""
    found = {path.stem: read_metadata(path)["epoch"] for path in out.glob("*.safetensors")}
    for name, epoch in found.items():
        assert safetensors.torch.load_file(out / f"{name}.safetensors")["weight"].tolist() == [epoch] * 3
    return found


def epoch_of(state: State) -> int:
    """Which epoch a state is of, as it says and as it is."""
    epoch = state["place"]["epoch"]
    numbers = state["state_dict"]["model.weight"], state["optimizer_states"][0]["moment"]
    assert [number.tolist() for number in numbers] == [[epoch] * 3] * 2
    assert state["callbacks"]["KeepWeights"]["best"] == epoch / 10
    return epoch


def pair_in(out: Path, names: tuple[Names, ...]) -> tuple[State, bool]:
    """The state that a run goes on from, with its weights beside it: for each name those that were written last."""
    found = resume(out)
    epoch = epoch_of(found[0])
    assert weights_in(out) == {name: number for number in range(1, epoch + 1) for name in names[number - 1]}
    assert not list(out.glob("*.partial"))
    return found


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("names", [(BOTH,), (BOTH, BOTH), (BOTH, BOTH, ("last",)), (BOTH, ())], ids=str)
def test_a_kill_leaves_the_pair_before_or_the_new_one(names: tuple[Names, ...], tmp_path: Path) -> None:
    """The process is killed while it writes the last state of some, each with the weights of these names."""
    out, new = tmp_path / "run", len(names)
    out.mkdir()
    for epoch in range(1, new):
        write(out, epoch, names[epoch - 1])
    found, partials, mixed = set(), 0, 0
    for files in kills(out, lambda: write(out, new, names[-1])):
        run = folder_of(tmp_path / "killed", files)
        partials += any(name.endswith(".partial") for name in files)
        if new == 1 and STATE not in files:
            with pytest.raises(MissingFileError):  # and the run starts anew
                resume(run)
            clear_partials(run)
            assert not files_in(run)
            continue
        resumed = pair_in(run, names)
        epoch = epoch_of(resumed[0])
        found.add(epoch)
        mixed += any(content != files.get(name) for name, content in files_in(run).items())
        write(run, epoch + 1, BOTH, resumed)
        assert epoch_of(pair_in(run, (*names[:epoch], BOTH))[0]) == epoch + 1
        assert files_in(run).keys() == FOUR
    assert found == {max(new - 1, 1), new}
    assert partials >= 3 and mixed == len(names[-1])  # times when a new state had weights of the one before


@pytest.mark.usefixtures("disk")
def test_a_second_kill_as_the_run_goes_on_loses_no_more_than_the_first(tmp_path: Path) -> None:
    out, names = tmp_path / "run", (BOTH, BOTH, BOTH)
    out.mkdir()
    write(out, 1, BOTH)

    def go_on() -> None:
        resumed = resume(run)
        write(run, epoch_of(resumed[0]) + 1, BOTH, resumed)

    left = kills(out, lambda: write(out, 2, BOTH))
    differently = {frozenset((name, files[name]) for name in FOUR & files.keys()): files for files in left}
    for files in differently.values():
        run = folder_of(tmp_path / "killed", files)
        epoch = epoch_of(read_state(run)[0])
        found = {epoch_of(pair_in(folder_of(tmp_path / "twice", again), names)[0]) for again in kills(run, go_on)}
        assert found == {epoch, epoch + 1}


def test_all_is_on_the_disk_before_the_first_file_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut is no kill: what the system has not written by then is lost, and so may a new name be."""
    done: list[Any] = []
    plain_sync, plain_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(os.fstat(descriptor))
        plain_sync(descriptor)

    def replace(old: Path, new: Path) -> None:
        done.append(Path(new).name)
        plain_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write(tmp_path, 1, BOTH)
    files, names, folder = done[:3], done[3:6], done[6]
    assert names == [STATE, "last.safetensors", "best.safetensors"]  # the last two can be written anew from the first
    whole = [(tmp_path / name).stat() for name in names]
    assert {(each.st_ino, each.st_size) for each in files} == {(each.st_ino, each.st_size) for each in whole}
    assert os.path.samestat(folder, tmp_path.stat()) and len(done) == 7
