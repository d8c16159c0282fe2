"""What `train` is handed by a task: a module to fit, its loaders, and what its weights' file says of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed
from lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from vankit.errors import UserError
from vankit.models.description import Description
from vankit.training.balance import balanced_order, labels_of
from vankit.training.draws import Draws, Seeded, shuffled
from vankit.training.interruption import leave_signals
from vankit.training.recipes import Config, TrainConfig


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


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first one, whose running statistics are kept; every process has to call it.

    While training PyTorch does so before a step, so that a process has its own after the last one.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


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
    if processes.world > 1 and any(isinstance(dataset, IterableDataset) for dataset in (train_set, val_set)):
        raise UserError("shards are read by one process only: use a folder of images under torchrun")
    train_loader = _train_loader(train_set, config, processes, collate)
    if not len(train_loader) or len(val_set) < processes.world:
        raise UserError(
            f"there are {len(train_set)} images to train on and {len(val_set)} to validate: expected at least a batch "
            f"of {config.batch_size} and one image for each of {processes.world} processes; try a smaller --batch-size"
        )
    val_config = config if val_batch is None else replace(config, batch_size=val_batch)
    return train_loader, _val_loader(val_set, val_config, processes, collate)


def _train_loader(
    dataset: Any, config: Config, processes: Processes, collate: Callable[..., Any] | None
) -> DataLoader[Any]:
    if isinstance(config, TrainConfig) and config.balance == "sampling":
        order = partial(balanced_order, labels_of(dataset), config.seed)
    elif isinstance(dataset, IterableDataset):  # which decides on its order itself
        return _loader(dataset, config, collate, drop_last=True)
    else:
        order = partial(shuffled, len(dataset), config.seed)
    sampler = Draws(len(dataset), order, processes.rank, processes.world)
    return _loader(Seeded(dataset, config.seed), config, collate, sampler=sampler, drop_last=True)


def _val_loader(
    dataset: Any, config: Config, processes: Processes, collate: Callable[..., Any] | None
) -> DataLoader[Any]:
    if processes.world > 1:
        dataset = Subset(dataset, range(processes.rank, len(dataset), processes.world))
    return _loader(dataset, config, collate)


def _loader(dataset: Any, config: Config, collate: Callable[..., Any] | None, **options: Any) -> DataLoader[Any]:
    if isinstance(dataset, IterableDataset):
        dataset.set_loader_cfg(num_workers=config.workers)  # type: ignore[attr-defined]
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
        **options,
    )


def collate_usable(samples: Sequence[Any]) -> Any:
    """PyTorch's batch of the samples that are not None; None if there is none."""
    usable = [sample for sample in samples if sample is not None]
    return default_collate(usable) if usable else None


def start_at(loader: DataLoader[Any], epoch: int, batch: int) -> None:
    """Have a training loader begin with a batch of an epoch; one of a stream begins with the epoch.

    Lightning says which epoch it is once workers have begun to load.
    """
    if isinstance(loader.sampler, Draws):
        loader.sampler.start_at(epoch, batch * (loader.batch_size or 1))
    elif hasattr(loader.dataset, "set_epoch"):
        loader.dataset.set_epoch(epoch)


def to_channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolutions in NHWC memory format."""
    network = network.to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        if parameter.ndim == 4 and parameter.shape[1] == 1:
            # one channel has the same bytes in both formats; DDP expects the strides that its gradients have
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return network
