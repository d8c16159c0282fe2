"""Predictions against the network called by hand, and images that fail among images that do not."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.special import expit
from timm.data import ImageNetInfo

import vankit
from vankit.data.images import load_image
from vankit.deploy.opening import open_network
from vankit.errors import MissingFileError, UserError
from vankit.prediction.jobs import iter_predictions, predict
from vankit.prediction.labels import Predictor, inference_model

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    preprocessing = {
        "input_size": [3, 40, 48], "mean": [0.4, 0.5, 0.6], "std": [0.5, 0.25, 0.2], "crop_pct": 1.0,
        "interpolation": "bilinear",
    }  # fmt: skip
    model = timm.create_model("van_b0", num_classes=3)
    torch.nn.init.normal_(model.head.fc.weight)  # far from uniform scores
    vankit.save_checkpoint(
        model, path, metadata={"model": "van_b0", "classes": CLASSES, "preprocessing": preprocessing}
    )
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor(checkpoint=checkpoint, batch_size=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2b.jpg").write_bytes(b"\xff\xd8\xff broken")
    return tmp_path


def by_hand(checkpoint: Path, image: Image.Image) -> torch.Tensor:
    """Scores of an image that needs no resizing, without vankit's predictor."""
    model = timm.create_model("van_b0", num_classes=3).eval()
    vankit.load_checkpoint(model, checkpoint)
    x = (np.asarray(image) / 255 - [0.4, 0.5, 0.6]) / [0.5, 0.25, 0.2]
    with torch.no_grad():
        return model(torch.from_numpy(x).permute(2, 0, 1)[None].float()).softmax(1)[0]


def test_labels_are_the_networks(checkpoint: Path, predictor: Predictor, photos: Path) -> None:
    for i in range(5):
        path = photos / f"{i}.png"
        scores = by_hand(checkpoint, Image.open(path))
        found = predictor(path)
        assert found.source == str(path)
        assert found.error is None
        assert [label.index for label in found.labels] == scores.argsort(descending=True).tolist()
        assert [label.name for label in found.labels] == [CLASSES[label.index] for label in found.labels]
        assert [label.score for label in found.labels] == pytest.approx(
            scores.sort(descending=True)[0].tolist(), abs=1e-5
        )


def test_paths_pictures_and_arrays_agree(predictor: Predictor, photos: Path) -> None:
    image = Image.open(photos / "0.png")
    answers = predictor([photos / "0.png", str(photos / "0.png"), image, np.asarray(image)])
    for other in answers[1:]:
        assert [label.index for label in other.labels] == [label.index for label in answers[0].labels]
        assert [label.score for label in other.labels] == pytest.approx([label.score for label in answers[0].labels])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_opened_pictures_are_treated_like_files(predictor: Predictor, tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(1)
    pixels = {
        "RGB": rng.integers(0, 255, (20, 30, 3), dtype=np.uint8),
        "RGBA": rng.integers(0, 255, (20, 30, 4), dtype=np.uint8),
        "I;16": rng.integers(0, 65535, (20, 30), dtype=np.uint16),
    }[mode]
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    by_path = predictor.preprocess(tmp_path / "turned.png")
    with Image.open(tmp_path / "turned.png") as image:
        assert image.mode == mode
        np.testing.assert_array_equal(predictor.preprocess(image), by_path)
    np.testing.assert_array_equal(predictor.preprocess(load_image(tmp_path / "turned.png")), by_path)


def test_a_failing_image_does_not_stop_the_rest(predictor: Predictor, photos: Path) -> None:
    paths = [photos / "0.png", photos / "2b.jpg", photos / "missing.png", photos / "1.png"]
    answers = predictor(paths)
    assert [a.source for a in answers] == [str(p) for p in paths]
    assert [a.error is None for a in answers] == [True, False, False, True]
    assert "broken" in str(answers[1].error)
    assert "no such image" in str(answers[2].error)
    assert answers[1].labels == ()


class Brightness(torch.nn.Module):
    """Logits of two classes, infinite for a black picture."""

    num_classes = 2
    pretrained_cfg = {"input_size": (3, 40, 48), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}  # noqa: RUF012

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))[:, :2]
        return torch.stack([mean[:, 0], 1 / mean[:, 1]], 1)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_logit_that_is_not_finite_fails_its_image_alone(engine: str, tmp_path: Path) -> None:
    for name, level in (("0", 90), ("1-black", 0), ("2", 30), ("3-black", 0)):
        Image.new("RGB", (48, 40), (level,) * 3).save(tmp_path / f"{name}.png")
    predictor = Predictor(Brightness(), engine=engine, batch_size=4)
    rows = predictor(sorted(tmp_path.glob("*.png")))
    assert [row.error is None for row in rows] == [True, False, True, False]
    assert [row.labels[0].index for row in rows if row.labels] == [1, 1]
    for row in (rows[1], predictor(tmp_path / "1-black.png")):
        assert row.labels == () and "the network's output is NaN or infinite" in str(row.error)
    black = np.zeros((1, 3, 40, 48), np.float32)
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        predictor.logits(black)
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        inference_model(Brightness(), tmp_path / "1-black.png", engine=engine)


def test_stream_reads_as_needed(predictor: Predictor, photos: Path) -> None:
    read = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            read.append(1)
            yield photos / "0.png"

    stream = predictor.stream(endless())
    for _ in range(3):
        next(stream)
    assert len(read) <= 3 + 2 * predictor.engine.workers
    stream.close()


def test_an_empty_folder_is_reported_after_the_rest(checkpoint: Path, photos: Path) -> None:
    (photos / "empty").mkdir()
    answers = iter_predictions([photos / "0.png", photos / "empty", photos / "1.png"], checkpoint=checkpoint)
    seen: list[str] = []
    with pytest.raises(MissingFileError, match="no images in .*empty"):
        seen.extend(answer.source for answer in answers)
    assert seen == [str(photos / "0.png"), str(photos / "1.png")]


def test_predict_writes_what_it_returns(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    answers = predict(photos, checkpoint=checkpoint, output=tmp_path / "out.csv", top_k=2)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [a.source for a in answers]
    assert len(rows) == 6
    for row, answer in zip(rows, answers, strict=True):
        assert row["error"] == (answer.error or "")
        assert row["label_2"] == (answer.labels[1].name if answer.labels else "")


def test_logits(predictor: Predictor) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 48), dtype=np.float32)
    with torch.no_grad():
        expected = predictor.network(torch.from_numpy(x)).numpy()
    found = predictor.logits(x)
    assert found.shape == (2, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("x", [np.zeros((1, 3, 8, 8)), np.zeros((3, 8, 8), np.float32)])
def test_logits_takes_batches_of_float32(predictor: Predictor, x: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"expected float32 \(B, 3, 40, 48\)"):
        predictor.logits(x)


@pytest.mark.parametrize("x", [np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)])
def test_arrays_that_are_no_pictures(predictor: Predictor, x: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"expected uint8 \(H, W, 3\)"):
        predictor.preprocess(x)
    assert "expected uint8" in str(predictor(x).error)


def test_pixel_limit(checkpoint: Path, photos: Path) -> None:
    answer = Predictor(checkpoint=checkpoint, max_pixels=100, engine="torch")(photos / "0.png")
    assert "1,920 pixels" in str(answer.error)


def test_reduced_decoding_is_on_request(tmp_path: Path) -> None:
    yy, xx = np.mgrid[:600, :800]
    pixels = np.stack([xx % 256, yy % 256, (xx + yy) % 256], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    opened = open_network("van_b0.cifar10")
    plain, quick = (Predictor(opened, reduced=flag, engine="torch") for flag in (False, True))
    exact, reduced = plain.preprocess(tmp_path / "large.jpg"), quick.preprocess(tmp_path / "large.jpg")
    np.testing.assert_array_equal(exact, plain.preprocess(Image.open(tmp_path / "large.jpg")))
    assert 0 < np.abs(exact - reduced).mean() < 0.1


def test_a_network_object_and_other_timm_models(caplog: pytest.LogCaptureFixture) -> None:
    network = timm.create_model("resnet18", num_classes=4)
    answer = Predictor(network, classes=list("abcd"), top_k=9, engine="torch")(np.zeros((30, 30, 3), np.uint8))
    assert sorted(label.name for label in answer.labels) == list("abcd")
    assert "is 9, and the network has 4 classes: all are given" in caplog.text


def test_random_weights_and_imagenet_names() -> None:
    predictor = Predictor("van_b0", pretrained=False, engine="torch")
    assert predictor.classes == ImageNetInfo("imagenet-1k").label_descriptions()
    assert predictor.preprocessing.mean == (0.5, 0.5, 0.5)
    assert predictor.preprocessing.crop_pct == 0.9
    assert predictor.preprocess(np.zeros((300, 400, 3), np.uint8)).shape == (3, 224, 224)


def test_a_checkpoint_that_does_not_name_its_model(tmp_path: Path) -> None:
    vankit.save_checkpoint(timm.create_model("van_b1", num_classes=2), tmp_path / "bare.pth", to="official")
    predictor = Predictor(checkpoint=tmp_path / "bare.pth", engine="torch")
    assert sum(p.numel() for p in predictor.network.parameters()) == 13_861_800 - 998 * 513
    assert predictor.classes == ["0", "1"]
    vankit.save_checkpoint(vankit.VAN(depths=(1, 1, 1, 1), num_classes=2), tmp_path / "own.pth", to="official")
    assert Predictor(checkpoint=tmp_path / "own.pth", engine="torch").description.model is None


@pytest.mark.parametrize("option", ["top_k", "batch_size", "max_pixels"])
def test_bad_options(option: str) -> None:
    with pytest.raises(UserError, match="expected 1 or more"):
        Predictor("van_b0", pretrained=False, **{option: 0})


def test_inference_model_answers_like_mmpretrain(checkpoint: Path, predictor: Predictor, photos: Path) -> None:
    answer = inference_model("van_b0", photos / "0.png", checkpoint)
    best = predictor(photos / "0.png").labels[0]
    assert set(answer) == {"pred_scores", "pred_label", "pred_score", "pred_class"}
    assert answer["pred_scores"].shape == (3,)
    assert answer["pred_scores"].sum() == pytest.approx(1)
    assert (answer["pred_label"], answer["pred_class"]) == (best.index, best.name)
    assert answer["pred_score"] == pytest.approx(best.score)


def test_another_name_of_a_published_model() -> None:
    network = Predictor("van-small_3rdparty_in1k", pretrained=False, engine="torch").network
    assert sum(p.numel() for p in network.parameters()) == 13_861_800


@pytest.mark.data
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_photographs_as_they_come(shared_data: Callable[..., Path], count: int) -> None:
    photos = sorted((shared_data("coco_panoptic_200", "val2017/.*jpg$") / "val2017").iterdir())[:count]
    answers = predict(photos, "van_b0.cifar10", engine="torch")
    assert len(answers) == count
    assert all(answer.error is None and len(answer.labels) == 5 for answer in answers)


def test_the_shipped_checkpoint_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    predictor = Predictor("van_b0.cifar10", engine="torch")
    assert predictor.classes[:3] == ["airplane", "automobile", "bird"]
    assert tuple(predictor.preprocessing.input_size) == (3, 64, 64)
    assert predictor(np.zeros((50, 40, 3), np.uint8)).error is None


def test_inference_model_fetches_public_weights(public_hub: object, photos: Path) -> None:
    answer = inference_model("van-tiny_3rdparty_in1k", photos / "0.png", engine="torch")
    assert answer["pred_scores"].shape == (1000,)
    assert answer["pred_class"] == ImageNetInfo("imagenet-1k").label_descriptions()[answer["pred_label"]]


def test_a_multi_label_network_gives_what_reaches_its_thresholds(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    logits = Predictor(checkpoint=checkpoint).logits
    images = [np.asarray(Image.open(photos / f"{i}.png")) for i in range(5)]
    x = np.stack([((image / 255 - [0.4, 0.5, 0.6]) / [0.5, 0.25, 0.2]).transpose(2, 0, 1) for image in images])
    expected = expit(logits(x.astype(np.float32)).astype(np.float64))
    metadata = vankit.read_checkpoint(checkpoint).metadata
    # the first class for all images, the second for all but one, the third for none
    metadata["thresholds"] = [0.0, float(np.sort(expected[:, 1])[:2].mean()), 1.0]
    model = timm.create_model("van_b0", num_classes=3)
    vankit.load_checkpoint(model, checkpoint)
    vankit.save_checkpoint(model, tmp_path / "several.safetensors", metadata=metadata)
    predictor = Predictor(checkpoint=tmp_path / "several.safetensors")
    for image, scores in zip(images, expected, strict=True):
        kept = sorted((i for i in (0, 1) if scores[i] >= metadata["thresholds"][i]), key=lambda i: -scores[i])
        found = predictor(image)
        assert [label.index for label in found.labels] == kept
        assert [label.score for label in found.labels] == pytest.approx(scores[kept].tolist(), abs=1e-5)
    one = Predictor(checkpoint=tmp_path / "several.safetensors", top_k=1)
    assert [len(one(image).labels) for image in images] == [1] * 5
    answer = inference_model("van_b0", images[0], tmp_path / "several.safetensors")
    assert answer["pred_scores"].tolist() == pytest.approx(expected[0].tolist(), abs=1e-5)


def test_a_picture_may_have_no_label(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    network = open_network(checkpoint=checkpoint)
    none = replace(network, description=replace(network.description, thresholds=[1.0] * 3))
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        (found,) = predict(photos / "0.png", none, output=tmp_path / name)
        assert (found.labels, found.error) == ((), None)
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == f"{photos / '0.png'}," + "," * 9
    row = {"image": str(photos / "0.png"), "labels": [], "indices": [], "scores": [], "error": None}
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row
    assert pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out.parquet").to_pylist() == [row]


def test_one_picture_in_any_form(predictor: Predictor, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = photos / "0.png"
    expected = predictor(path).labels
    assert predictor(path.read_bytes()).labels == expected
    assert predictor(Image.open(path)).labels == expected
    assert [each.labels for each in predictor([path.read_bytes()])] == [expected]
    empty = predictor(np.zeros((0, 0, 3), np.uint8))
    assert (empty.labels, empty.error) == ((), "array (0, 0, 3) has no pixels")
    assert predictor(b"abc").error.startswith("image of 3 bytes is not an image: ")
    assert [each.error is None for each in predictor([path, 5])] == [True, False]
    assert not caplog.records  # a bug would be logged


@pytest.mark.parametrize("images", [None, 5])
def test_what_is_no_picture_is_refused(predictor: Predictor, images: Any) -> None:
    with pytest.raises(UserError, match=rf"^images is {images}: expected a path, "):
        predictor(images)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": "a"}, "top_k is 'a', expected a whole number"),
        ({"top_k": 1.5}, "top_k is 1.5, expected a whole number"),
        ({"batch_size": "a"}, "batch_size is 'a', expected a whole number"),
        ({"model": ""}, "model is empty: expected"),
        ({"checkpoint": ""}, "checkpoint is empty: expected"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        Predictor(**options)


@pytest.mark.parametrize("inputs", [None, 5, b"abc", "", [""], [None]])
def test_inputs_that_name_nothing_are_refused(checkpoint: Path, inputs: Any) -> None:
    with pytest.raises(UserError, match=r"input.* is .*: expected a file, a folder or a pattern"):
        predict(inputs, checkpoint=checkpoint)
