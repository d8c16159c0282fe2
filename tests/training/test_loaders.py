"""Loaders: what they refuse, and which process gets which image."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from vankit.errors import UserError
from vankit.models.van import VAN
from vankit.training.loaders import Processes, collate_usable, loaders, to_channels_last
from vankit.training.recipes import Config

CONFIG = Config(batch_size=2, workers=0)


class Numbers(Dataset[int]):
    def __init__(self, length: int, classes: tuple[str, ...] = ("a", "b")) -> None:
        self.length, self.classes = length, list(classes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if index >= self.length:
            raise IndexError
        return index


class Stream(IterableDataset[int]):
    classes = ("a", "b")
    workers: int | None = None

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))

    def set_loader_cfg(self, num_workers: int) -> None:
        self.workers = num_workers


def flat(loader: Any) -> list[int]:
    return [number for batch in loader for number in batch.tolist()]


def test_training_is_shuffled_in_whole_batches_and_validation_complete_in_order() -> None:
    train, val = loaders(Numbers(31), Numbers(7), CONFIG, Processes())
    first = flat(train)
    assert flat(train) == first
    train.sampler.set_epoch(1)  # type: ignore[attr-defined]
    second = flat(train)
    assert len(first) == len(set(first)) == 30 and set(first) < set(range(31))
    assert first != second and first != sorted(first)
    assert [batch.tolist() for batch in val] == [[0, 1], [2, 3], [4, 5], [6]]
    assert flat(val) == list(range(7))


def test_samples_are_collated_as_asked() -> None:
    train, val = loaders(Numbers(4), Numbers(3), CONFIG, Processes(), collate=tuple)
    assert all(type(batch) is tuple and len(batch) == 2 for batch in train)
    assert list(val) == [(0, 1), (2,)]
    train, val = loaders(Numbers(4), Numbers(3), CONFIG, Processes(), collate=tuple, val_batch=1)
    assert len(next(iter(train))) == 2 and list(val) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_no_image_is_validated_twice_or_left_out_over_processes(world: int) -> None:
    shares = [flat(loaders(Numbers(20), Numbers(7), CONFIG, Processes(rank, world))[1]) for rank in range(world)]
    assert sorted(number for share in shares for number in share) == list(range(7))


def test_processes_train_on_shares_of_one_size_in_an_order_that_the_seed_and_epoch_decide() -> None:
    def shares(config: Config, epoch: int = 0) -> list[list[int]]:
        found = []
        for rank in range(3):
            train, _ = loaders(Numbers(20), Numbers(7), config, Processes(rank, 3))
            train.sampler.set_epoch(epoch)
            found.append(flat(train))
        return found

    first = shares(CONFIG)
    assert [len(share) for share in first] == [6, 6, 6]
    assert len({number for share in first for number in share}) == 18
    assert shares(CONFIG) == first
    assert shares(CONFIG, epoch=1) != first and shares(replace(CONFIG, seed=1)) != first


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (("a", "b", "c"), ("b", "c", "d"), "train and val have different classes: a, d"),
        (("a", "b"), ("b", "a"), "train and val have different classes: the same in another order"),
    ],
)
def test_different_classes_are_named(train: tuple[str, ...], val: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaders(Numbers(4, train), Numbers(4, val), CONFIG, Processes())


@pytest.mark.parametrize(
    ("train", "val", "world"), [(1, 4, 1), (3, 4, 2), (2, 4, 3), (20, 2, 3)], ids=["batch", "share", "none", "val"]
)
def test_too_few_images_are_counted(train: int, val: int, world: int) -> None:
    message = (
        f"there are {train} images to train on and {val} to validate: expected at least a batch of 2 and one image"
    )
    with pytest.raises(UserError, match=f"{message} for each of {world} processes; try a smaller --batch-size"):
        loaders(Numbers(train), Numbers(val), CONFIG, Processes(0, world))


def test_a_stream_is_read_by_one_process_alone() -> None:
    stream = Stream()
    train, val = loaders(stream, Stream(), CONFIG, Processes())
    assert stream.workers == 0
    assert flat(train) == [0, 1, 2, 3] and flat(val) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="shards are read by one process only"):
        loaders(Stream(), Stream(), CONFIG, Processes(0, 2))


def test_channels_last_keeps_values_and_gradients() -> None:
    torch.manual_seed(0)
    plain = VAN(num_classes=2, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2)).eval()
    network = to_channels_last(copy.deepcopy(plain))
    before = plain.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    dense, depthwise = 0, 0
    for parameter in network.parameters():
        if parameter.ndim == 4 and parameter.shape[1] == 1:
            assert parameter.stride() == torch.empty(parameter.shape).stride()
            depthwise += 1
        elif parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
            dense += 1
    assert dense > 4 and depthwise > 4
    x = torch.rand(2, 3, 32, 32)
    gradients = []
    for model in (plain, network):
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert torch.allclose(plain(x), network(x), atol=1e-5)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-4, rtol=1e-3), name


def test_batches_of_what_is_left() -> None:
    images, labels = collate_usable([None, (torch.ones(3), 1), (torch.zeros(3), 0)])
    assert images.tolist() == [[1, 1, 1], [0, 0, 0]] and labels.tolist() == [1, 0]
    assert collate_usable([None, None]) is None
