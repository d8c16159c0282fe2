"""Classes of unequal size: how much an image of each counts, or how often it is drawn."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vankit.errors import UserError


def labels_of(dataset: Any) -> NDArray[np.int64]:
    """The class of every image of a labelled set, without reading the images.

    Args:
        dataset: see `vankit.data.folders.open_dataset`.

    Raises:
        ValueError: it is a stream, whose labels stand beside the images.
    """
    if (targets := getattr(dataset, "targets", None)) is not None:
        return np.asarray(targets, dtype=np.int64)
    rows: Any = getattr(getattr(dataset, "reader", None), "dataset", None)
    if hasattr(rows, "with_format"):  # of Hugging Face
        return np.asarray(rows.with_format("numpy")[dataset.reader.label_key][:], dtype=np.int64)
    raise UserError(
        "balance (--balance) needs the labels of all training images at the start, which shards do not list: use a "
        "folder or hfds/, or leave it out; a dataset of your own lists them as targets"
    )


def balanced_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """How much an image of each class counts: inversely to the class's number of images, 1 on average over the images.

    With N images of K classes, n of them in a class, its weight is N / (K n), as scikit-learn's "balanced". A class
    without images has weight 0 and is not counted in K.

    Args:
        labels: (N,), from 0.
        classes: how many there are.

    Returns:
        (classes,).
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * counts.clip(1)) * (counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


def weighted_targets(labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Targets of the cross-entropy with each label's share of an image weighted by its class.

    An image's label is weighted first and smoothed then. The other way round, as `F.cross_entropy` has it, the share
    that smoothing gives to a rare class would be weighted as the rare class, too: with two classes of which one has
    twenty times as many images, the rare one would then be the better answer to every image.

    Args:
        labels: (B,) classes, or (B, classes) shares of them that sum to 1, as mixup makes them; not smoothed.
        weights: (classes,), see `balanced_weights`.
        smoothing: share of each label that is spread evenly over all classes, 0 to 1.

    Returns:
        (B, classes); a row sums to the image's weight.
    """
    shares = F.one_hot(labels, len(weights)) if labels.ndim == 1 else labels
    weighted = shares * weights
    return (1 - smoothing) * weighted + smoothing / len(weights) * weighted.sum(1, keepdim=True)


def balanced_order(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """An epoch that has every class equally often, to within one image, and is as long as the data.

    All images of a class are drawn before one is drawn again.

    Args:
        labels: (N,) class of every image; a class without images is never drawn.
        seed, epoch: decide on the draw.

    Returns:
        (N,) indices in their order.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng((seed, epoch))
    each, left = divmod(len(labels), len(members))
    counts = each + (rng.permutation(len(members)) < left)
    # a small class goes round and round, the same number of times for all its images or once more
    drawn = [np.resize(rng.permutation(m), count) for m, count in zip(members, counts, strict=True)]
    return rng.permutation(np.concatenate(drawn))
