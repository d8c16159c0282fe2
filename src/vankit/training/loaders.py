"""What `train` is handed by a task: a module to fit, its loaders, and what its weights' file says of itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed
from lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset

from vankit.errors import UserError
from vankit.models.description import Description
from vankit.training.recipes import Config


@dataclass(frozen=True)
class Processes:
    """This training process among all: its rank, from 0, and their number."""

    rank: int = 0
    world: int = 1


def gathered(state: Any) -> list[Any]:
    """What each process passes, from all of them; every process has to call it."""
    if not torch.distributed.is_initialized() or (world := torch.distributed.get_world_size()) == 1:
        return [state]
    states: list[Any] = [None] * world
    torch.distributed.all_gather_object(states, state)
    return states


@dataclass(frozen=True)
class Setup:
    """A run ready to start.

    Attributes:
        task: has the network as `model`, and `measures()`: figures of the last validation by name, 0 to 1, the first
            one choosing the best epoch.
        train_loader, val_loader: batches of this process's share.
        description: of the network.
    """

    task: LightningModule
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    description: Description


def loaders(
    train_set: Any,
    val_set: Any,
    config: Config,
    processes: Processes,
    collate: Callable[..., Any] | None = None,
    val_batch: int | None = None,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Batches of this process's share; validation shares are disjoint, so that no image counts twice.

    Args:
        train_set, val_set: datasets with `classes`.
        config: batch size, workers and seed.
        processes: this process among all.
        collate: samples → batch; torch's if None.
        val_batch: batch size of validation; the config's if None.

    Raises:
        ValueError: the classes of the two differ, there are too few images, or a stream has several processes.
    """
    if list(train_set.classes) != list(val_set.classes):
        only = sorted(set(train_set.classes) ^ set(val_set.classes)) or ["the same in another order"]
        raise UserError(f"train and val have different classes: {', '.join(only[:10])}")
    if not len(val_set):
        raise UserError(
            f"there is no image to validate with, and {len(train_set)} to train on are too few to hold any out: add "
            "images, or a val split"
        )
    train_loader = _loader(train_set, config, True, processes, collate)
    if not len(train_loader) or len(val_set) < processes.world:
        raise UserError(
            f"there are {len(train_set)} images to train on and {len(val_set)} to validate: expected at least a batch "
            f"of {config.batch_size} and one image for each of {processes.world} processes; try a smaller --batch-size"
        )
    val_config = config if val_batch is None else replace(config, batch_size=val_batch)
    return train_loader, _loader(val_set, val_config, False, processes, collate)


def _loader(
    dataset: Any, config: Config, shuffle: bool, processes: Processes, collate: Callable[..., Any] | None
) -> DataLoader[Any]:
    stream = isinstance(dataset, IterableDataset)
    rank, world = processes.rank, processes.world
    if stream and world > 1:
        raise UserError("shards are read by one process only: use a folder of images under torchrun")
    if stream:
        dataset.set_loader_cfg(num_workers=config.workers)
    sampler: DistributedSampler[Any] | None = None
    if world > 1 and not stream:
        if shuffle:
            sampler = DistributedSampler(dataset, world, rank, seed=config.seed, drop_last=True)
        else:
            dataset = Subset(dataset, range(rank, len(dataset), world))
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=sampler,
        shuffle=shuffle and sampler is None and not stream,
        drop_last=shuffle,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
    )


def to_channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolutions in NHWC memory format."""
    network = network.to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        if parameter.ndim == 4 and parameter.shape[1] == 1:
            # one channel has the same bytes in both formats; DDP expects the strides that its gradients have
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return network
