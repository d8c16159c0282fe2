"""Messages of the Python API in the words of the command line."""

import pytest

from vankit.cli import app
from vankit.cli.messages import with_options

TRAIN = ["train", "data", "--epochs", "3"]


@pytest.mark.parametrize(
    ("words", "message", "shown"),
    [
        (TRAIN, "img_size is 0, expected 1 or more", "--img-size is 0, expected 1 or more"),
        (TRAIN, "`mixup` and `cutmix` pair images", "--mixup and --cutmix pair images"),
        (TRAIN, "kernel_size is (0,)", "--lka.kernel-size is (0,)"),
        (TRAIN, "out is full: `out`", "--output is full: --output"),
        (["validate", "data"], "leave out `picture`", "leave out --plot"),
        # not an option of this command, or not a parameter at all
        (TRAIN, "top_k is 0", "top_k is 0"),
        (TRAIN, "`top_k` is 0", "`top_k` is 0"),
        (TRAIN, "data is a file", "data is a file"),
        (TRAIN, "the img_size is 0", "the img_size is 0"),
        (TRAIN, "`--checkpoint FILE` or `van_b0.cifar10`", "`--checkpoint FILE` or `van_b0.cifar10`"),
        (["study", "decomposition"], "dilation is 0", "--dilation is 0"),
        (["nope"], "dilation is 0", "dilation is 0"),
        ([], "dilation is 0", "dilation is 0"),
        # a file of that name
        (["predict", "x.jpg", "--checkpoint", "score"], "score is not a checkpoint", "score is not a checkpoint"),
        (["predict", "x.jpg", "--checkpoint=score"], "score is not a checkpoint", "score is not a checkpoint"),
    ],
)
def test_parameters_become_options(words: list[str], message: str, shown: str) -> None:
    assert with_options(message, app, words) == shown
