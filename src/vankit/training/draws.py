"""What a run draws at random, as a function of its seed and of the place: then a run that was stopped goes on as if it
had not been, and the number of processes that load images changes nothing."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

_ITEM, _STEP = 0, 1  # what the numbers are drawn for


class Draw(NamedTuple):
    """An item of a training set, by its index, as the one of this place in an epoch, counted over all processes."""

    epoch: int
    place: int
    item: int


class Draws(Sampler[Draw]):
    """Which items an epoch is made of, in their order, for one process of several; all get the same number.

    Args:
        length: of the training set.
        order: epoch → (length,) indices, the same in every process.
        rank, world: this process among all.
    """

    def __init__(self, length: int, order: Callable[[int], NDArray[np.int64]], rank: int = 0, world: int = 1) -> None:
        self.length, self.order, self.rank, self.world = length, order, rank, world
        self.epoch = self.skipped = 0

    def start_at(self, epoch: int, skipped: int) -> None:
        """Leave out the first draws of this process in an epoch: a run that is resumed within it has had them."""
        self.epoch, self.skipped = epoch, skipped

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.start_at(epoch, 0)

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[Draw]:
        places = np.arange(self.rank, len(self) * self.world, self.world)[self.skipped :]
        chosen, epoch = self.order(self.epoch)[places], self.epoch
        return (Draw(epoch, int(place), int(index)) for place, index in zip(places, chosen, strict=True))


def shuffled(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Every index once, in an order that seed and epoch decide."""
    return np.random.default_rng((seed, epoch)).permutation(length)


class Seeded(Dataset[Any]):
    """A training set whose items are augmented with random numbers that seed, epoch and place decide.

    Args:
        dataset: map-style; it may draw from the global generators of Python, NumPy and PyTorch.
        seed: of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        _seed_generators(self.seed, _ITEM, draw.epoch, draw.place)
        return self.dataset[draw.item]


class SeedSteps(Callback):
    """Seeds all global generators at the start of every step: for drop path, mixup, and what heads draw.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = _seed_generators(self.seed, _STEP, trainer.current_epoch, batch_idx, trainer.global_rank)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(number)


def _seed_generators(seed: int, *key: int) -> int:
    """Seed those of the CPU.

    Returns:
        The number that PyTorch's was seeded with.
    """
    first, second, third = np.random.SeedSequence(seed, spawn_key=key).generate_state(3)
    random.seed(int(first))
    np.random.seed(second)
    # torch.manual_seed would also note, for a GPU that is not in use yet, who called it
    torch.default_generator.manual_seed(int(third))
    return int(third)
