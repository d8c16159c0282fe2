"""`vankit bench`: how fast vankit is on this machine."""

import math

from rich.table import Table

from vankit.cli.terminal import console


def command(models: list[str] | None = None, /, *, seconds: float = 15) -> None:
    """Time vankit's engines on this machine, one image at a time: against plain PyTorch, with random weights; or an
    exported folder as it is, which needs no PyTorch.

    Args:
        models: names of timm models, or folders that vankit export wrote; a detector or segmenter is given pictures of
            the size that it is made for. Default: van_b0.
        seconds: how long to time each model, after a minute or two in which it is compiled.
    """
    from vankit.study.timing import bench as run

    table = Table(title="milliseconds for one image, median and quartiles")
    table.add_column("model")
    table.add_column("engine")
    for heading in ("ms", "quartiles", "times as fast", "same answers", "outputs differ by"):
        table.add_column(heading, justify="right")
    for row in run(models or ["van_b0"], seconds):
        if row.ms is None:
            table.add_row(row.model, row.contender, row.note)
            continue
        speedup = "" if row.speedup is None else f"{row.speedup:.1f}"
        agreement = "" if row.agreement is None else f"{math.floor(1000 * row.agreement) / 10}%"  # 100 only of all
        difference = "" if row.difference is None else f"{row.difference:.0e}"
        cells = f"{row.ms:.2f}", f"{row.ms_low:.2f} – {row.ms_high:.2f}", speedup, agreement, difference
        table.add_row(row.model, row.contender, *cells)
    console().print(table)
