"""Classes of unequal size: weights by hand, losses against PyTorch's, and what is drawn."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vankit.data.folders import open_dataset
from vankit.data.held_out import HeldOut
from vankit.data.shapes import Shapes
from vankit.errors import UserError
from vankit.training.balance import balanced_order, balanced_weights, labels_of, weighted_targets
from vankit.training.classify import Classifier
from vankit.training.recipes import TrainConfig, short
from vankit.training.run import train

pytestmark = pytest.mark.usefixtures("blank_run_reports")

LABELS = np.array([0] * 6 + [1] * 3 + [2])
WEIGHTS = torch.tensor([10 / 18, 10 / 9, 10 / 3])


def test_weights_are_inverse_frequencies() -> None:
    torch.testing.assert_close(balanced_weights(LABELS, 3), WEIGHTS)


def test_weights_are_scikit_learns() -> None:
    weights = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = np.random.default_rng(0).choice(5, 1000, p=[0.6, 0.3, 0.07, 0.02, 0.01])
    expected = weights("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 5).numpy(), expected, rtol=1e-6)


@given(st.lists(st.integers(0, 6), min_size=1))
def test_weights_are_one_on_average_and_finite(labels: list[int]) -> None:
    weights = balanced_weights(np.array(labels), 7)
    assert float(weights[labels].double().mean()) == pytest.approx(1, rel=1e-5)
    assert {label for label in range(7) if weights[label] == 0} == set(range(7)) - set(labels)
    sums = {label: float(weights[label]) * labels.count(label) for label in set(labels)}
    assert list(sums.values()) == pytest.approx([len(labels) / len(sums)] * len(sums), rel=1e-5)


def classifier(weights: Tensor | None, **settings: Any) -> Classifier:
    config = replace(short("van_b0"), **{"smoothing": 0.0, "channels_last": False, **settings})
    torch.manual_seed(0)
    task = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 3, config, 128, weights)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    return task


IMAGES, TARGETS = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def test_the_loss_of_an_image_is_weighted_by_its_class() -> None:
    task = classifier(WEIGHTS)
    expected = F.cross_entropy(task.model(IMAGES), TARGETS, WEIGHTS, reduction="sum") / len(IMAGES)
    torch.testing.assert_close(task.training_step((IMAGES, TARGETS), 0), expected)
    plain = F.cross_entropy(task.model(IMAGES), TARGETS)
    assert not torch.isclose(expected, plain)
    torch.testing.assert_close(classifier(None).training_step((IMAGES, TARGETS), 0), plain)


def test_a_smoothed_loss_is_weighted_by_the_images_class() -> None:
    task = classifier(WEIGHTS, smoothing=0.2)
    losses = F.cross_entropy(task.model(IMAGES), TARGETS, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(task.training_step((IMAGES, TARGETS), 0), (WEIGHTS[TARGETS] * losses).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_labels_of_a_mixed_image_are_weighted_each(smoothing: float) -> None:
    task = classifier(WEIGHTS, smoothing=smoothing, mixup=0.8)
    assert task.mixup is not None
    np.random.seed(0)
    mixed, shares = task.mixup(IMAGES.clone(), TARGETS)
    assert ((shares > 0) & (shares < 1)).any() and torch.allclose(shares.sum(1), torch.ones(4))
    np.random.seed(0)
    loss = task.training_step((IMAGES, TARGETS), 0)
    logits = task.model(mixed)
    if not smoothing:
        torch.testing.assert_close(loss, F.cross_entropy(logits, shares, WEIGHTS))
    plain = {"label_smoothing": smoothing, "reduction": "none"}
    as_class = torch.stack([F.cross_entropy(logits, torch.full((4,), c), **plain) for c in range(3)], 1)
    torch.testing.assert_close(loss, (shares * WEIGHTS * as_class).sum(1).mean())


def test_smoothing_does_not_turn_every_image_into_the_rare_class() -> None:
    weights = balanced_weights(np.array([0] * 99 + [1]), 2)
    best = weighted_targets(torch.tensor([0, 1]), weights, 0.1)  # of logits free to choose, the best are its logarithm
    assert best.argmax(1).tolist() == [0, 1]
    pytorchs = weights * torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    assert pytorchs.argmax(1).tolist() == [1, 1]


def test_weights_are_no_part_of_the_checkpoint() -> None:
    assert classifier(WEIGHTS).state_dict().keys() == classifier(None).state_dict().keys()


def drawn(labels: NDArray[np.int64], seed: int, epoch: int = 0) -> list[int]:
    return balanced_order(labels, seed, epoch).tolist()


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(0, 3))
def test_classes_are_drawn_equally_often(labels: list[int], epoch: int) -> None:
    found = drawn(np.array(labels), 5, epoch)
    assert len(found) == len(labels)
    classes = Counter(labels[i] for i in found)
    each = len(labels) / len(set(labels))
    assert set(classes.values()) <= {int(each), -int(-each // 1)}
    images = Counter(found)
    for label in set(labels):
        times = [images[i] for i in range(len(labels)) if labels[i] == label]
        assert max(times) - min(times) <= 1


def test_seed_and_epoch_decide_on_the_draw() -> None:
    labels = np.arange(100) % 7
    first = drawn(labels, 0)
    assert drawn(labels, 0) == first != sorted(first)
    others = [drawn(labels, seed, epoch) for seed, epoch in ((0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in (first, *others)}) == 4


def squares(root: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        root.joinpath(name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (200 if name == "bright" else 50, 9 * i, 0)).save(root / name / f"{i}.png")


def test_labels_of_what_lists_them(tmp_path: Path) -> None:
    shapes = Shapes("train", 23, 16)
    assert labels_of(shapes).tolist() == [shapes[i][1] for i in range(23)]
    squares(tmp_path / "train", {"bright": 5, "dark": 3})
    folder = open_dataset(tmp_path, "train", np.asarray, held_out=HeldOut(0.3))
    assert labels_of(folder).tolist() == [folder[i][1] for i in range(len(folder))] == [0, 0, 0, 1, 1]


def test_labels_of_hugging_faces_sets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    squares(tmp_path / "train", {"bright": 5, "dark": 3})
    data = open_dataset(f"hfds/{tmp_path}", "train", np.asarray, held_out=HeldOut(0.3))
    assert labels_of(data).tolist() == [data[i][1] for i in range(len(data))] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_shards_do_not_list_their_labels(balance: Any, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "png")
    splits = {}
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for suffix, content in (("png", png.getvalue()), ("cls", b"0")):
                info = tarfile.TarInfo(f"0.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        splits[split] = {"name": split, "num_samples": 1, "filenames": [f"{split}.tar"], "shard_lengths": [1]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    (tmp_path / "classes.txt").write_text("a\nb")
    config = replace(short("van_b0"), img_size=32, batch_size=2, workers=0, balance=balance)
    with pytest.raises(UserError, match=r"balance \(--balance\) needs the labels .* shards do not list: use a folder"):
        train(f"wds/{tmp_path}", "van_b0", config, tmp_path / "run")


TINY = replace(
    short("van_b0"), epochs=1, warmup_epochs=0, batch_size=4, lr_batch=4, img_size=32, workers=0, smoothing=0.0
)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    squares(tmp_path / "data" / "train", {"bright": 13, "dark": 3})
    squares(tmp_path / "data" / "val", {"bright": 2, "dark": 2})
    return tmp_path / "data"


def trained_on(data: Path, config: TrainConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Tensor]:
    """The labels that a run saw, and the weights of its classes."""
    seen: list[int] = []
    found: list[Any] = []
    step = Classifier.training_step

    def watch(self: Classifier, batch: Any, batch_idx: int) -> Tensor:
        seen.extend(batch[1].tolist())
        found.append(self.class_weights)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", watch)
    train(data, "van_b0", config, out)
    return seen, found[0]


def test_a_run_draws_the_classes_equally(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, weights = trained_on(uneven, replace(TINY, balance="sampling"), tmp_path / "run", monkeypatch)
    assert Counter(seen) == {0: 8, 1: 8} and weights is None


def test_a_run_weights_the_classes(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, balance="weights", ema_decay=0.5)
    seen, weights = trained_on(uneven, config, tmp_path / "run", monkeypatch)
    assert Counter(seen) == {0: 13, 1: 3}
    torch.testing.assert_close(weights, torch.tensor([16 / 26, 16 / 6]))
