"""`vankit models`: the variants of VAN."""

from rich.table import Table

from vankit.cli.terminal import console


def command(*, size: int = 224) -> None:
    """List the variants of VAN with their parameters, cost and published accuracy.

    Args:
        size: side in pixels of the square image for which the cost is counted.
    """
    from vankit.models.van import VARIANTS, default_cfgs
    from vankit.study.complexity import ACCURACY, complexity

    table = Table(
        title=f"VAN at {size} px",
        caption="accuracy: ImageNet-1k at 224 px, as published for the weights in1k; "
        "weights are named as in van_b4.in22k, the first ones are the default",
    )
    table.add_column("model")
    for heading in (
        "parameters", "GMACs\nconv, matmul", "GMACs\n+ bias, norm, product", "top-1 %", "top-5 %", "weights",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for name in VARIANTS:
        cost = complexity(name, size)
        top1, top5 = (f"{x:.2f}" for x in ACCURACY[name]) if name in ACCURACY else ("", "")
        row = (f"{cost.params:,}", f"{cost.macs / 1e9:.3f}", f"{cost.macs_all / 1e9:.3f}", top1, top5)
        table.add_row(name, *row, ", ".join(default_cfgs[name].tags))
    console().print(table)
