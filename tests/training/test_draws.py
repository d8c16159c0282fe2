"""What a run draws: a function of seed, epoch and place, whichever process asks."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vankit.training.draws import Draw, Draws, Seeded, shuffled
from vankit.training.loaders import start_at


class Noise(Dataset[Any]):
    """Numbers of all three generators; the indices of the items are not seen in them."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def order(epoch: int) -> Any:
    return shuffled(12, 3, epoch)


def test_an_order_has_every_item_once_and_follows_from_seed_and_epoch() -> None:
    orders = [tuple(shuffled(50, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(sorted(each) == list(range(50)) for each in orders) and len(set(orders)) == 4
    assert tuple(shuffled(50, 1, 1)) == orders[3]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_processes_share_the_places_of_an_epoch(world: int) -> None:
    shares = [list(Draws(12, order, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {12 // world} == {len(Draws(12, order, 0, world))}
    draws = sorted(draw for share in shares for draw in share)
    assert draws == [Draw(0, place, order(0)[place]) for place in range(12 // world * world)]


def test_what_was_drawn_before_a_stop_is_left_out_of_that_epoch_alone() -> None:
    whole = Draws(12, order)
    rest = Draws(12, order)
    for epoch in (4, 5):
        whole.set_epoch(epoch)
        if epoch == 4:
            rest.start_at(4, 7)
        rest.set_epoch(epoch)  # as Lightning does before every epoch
        assert list(rest) == list(whole)[7 if epoch == 4 else 0 :]
        assert len(rest) == 12


def test_augmentation_follows_from_seed_epoch_and_place() -> None:
    first = Seeded(Noise(), 0)[Draw(1, 2, 3)]
    torch.rand(3), random.random(), np.random.rand()
    assert Seeded(Noise(), 0)[Draw(1, 2, 3)] == first
    assert Seeded(Noise(), 0)[Draw(1, 2, 4)] == (4, *first[1:])
    others = [Seeded(Noise(), seed)[Draw(epoch, place, 3)] for seed, epoch, place in ((1, 1, 2), (0, 2, 2), (0, 1, 3))]
    assert len({number for item in (first, *others) for number in item[1:]}) == 12


def test_batches_are_the_same_from_any_number_of_workers_and_from_any_batch_on() -> None:
    def batches(workers: int, start: int) -> list[list[torch.Tensor]]:
        loader: DataLoader[Any] = DataLoader(Seeded(Noise(), 0), 4, sampler=Draws(12, order), num_workers=workers)
        start_at(loader, 1, start)
        return list(loader)

    whole = batches(0, 0)
    assert len(whole) == 3
    for workers, start in ((0, 1), (1, 0), (2, 2)):
        for batch, expected in zip(batches(workers, start), whole[start:], strict=True):
            assert all(map(torch.equal, batch, expected))
