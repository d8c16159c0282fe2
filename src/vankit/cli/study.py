"""`vankit study`: the paper's tables, recomputed."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from vankit.cli.settings import given, settings
from vankit.cli.terminal import console, say
from vankit.errors import UserError
from vankit.files import check_picture
from vankit.training import recipes

command = App(
    name="study", help="The paper's tables, recomputed: what VAN costs, and what each of its parts contributes."
)

_Settings = settings({"Training settings": recipes.TrainConfig}, without=("seed", "lka"))


def _table(title: str, *headings: str, caption: str | None = None) -> Table:
    """A table whose first column names the row."""
    table = Table(title=title, caption=caption)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    return table


@command.command
def decomposition(
    *,
    kernel_size: int = 21,
    dilation: int | None = None,
    channels: Annotated[tuple[int, ...], Parameter(consume_multiple=1)] = (32, 64, 128, 256, 512),
    plot: Path | None = None,
) -> None:
    """Parameters of a large convolution: standard, decomposed as in MobileNet, and as in LKA (paper table 1).

    Args:
        kernel_size: size K of the kernel.
        dilation: dilation d. Default: the one with the fewest parameters.
        channels: numbers of channels, one per row.
        plot: image file for a picture of the table.
    """
    from vankit.study.decomposition import best_dilation, depthwise_params, plot_decomposition
    from vankit.study.decomposition import decomposition as run

    check_picture(plot)
    rows = run(kernel_size, dilation, channels)
    d = dilation or best_dilation(kernel_size)
    table = _table(f"parameters, K = {kernel_size}, d = {d}", "channels", "standard", "MobileNet", "LKA")
    for row in rows:
        table.add_row(str(row.channels), f"{row.standard:,}", f"{row.mobilenet:,}", f"{row.lka:,}")
    console().print(table)
    near = (f"d={n} {depthwise_params(kernel_size, n)}" for n in range(max(1, d - 2), d + 3))
    say(f"depth-wise parameters per channel: {', '.join(near)}; fewest at d={best_dilation(kernel_size)}")
    if plot:
        plot_decomposition(kernel_size, rows, plot)
        say(f"picture: {plot}")


@command.command
def variants(names: list[str] | None = None, /, *, size: int = 224) -> None:
    """Parameters and multiply-accumulates of the variants of VAN, by stage and by kind of layer.

    Args:
        names: such as van_b0. Default: all variants.
        size: side in pixels of the square image for which the cost is counted.
    """
    from vankit.models.van import VARIANTS
    from vankit.study.complexity import Complexity, layers

    for name in names or VARIANTS:
        costs = layers(name, size)
        table = _table(f"{name} at {size} px", "", "parameters", "GMACs", "GMACs\n+ bias, norm, product")
        for by in (0, 1):  # stages, then kinds of layers
            for part in dict.fromkeys(key[by] for key in costs):
                cost = sum((cost for key, cost in costs.items() if key[by] == part), Complexity())
                table.add_row(part, *_cost(cost))
            table.add_section()
        table.add_row("all", *_cost(sum(costs.values(), Complexity())))
        console().print(table)


def _cost(cost: Any) -> tuple[str, str, str]:
    return f"{cost.params:,}", f"{cost.macs / 1e9:.4f}", f"{cost.macs_all / 1e9:.4f}"


@command.command
def ablation(
    *,
    train: str | None = None,
    seeds: int | None = None,
    rows: Annotated[tuple[str, ...], Parameter(consume_multiple=1)] = (),
    model: str = "van_b0",
    output: Path | None = None,
    plot: Path | None = None,
    max_pixels: int = 67_108_864,
    settings: Annotated[_Settings | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """The paper's ablations of LKA (tables 3 and 4); with --train each row is also trained, all with the same budget.

    Args:
        train: labelled images to train every row on, as for vankit train. Runs that are already in --output are not
            repeated.
        seeds: number of runs per row, each with its own seed. Default: 3.
        rows: names of the rows to train, as in the table. Default: all.
        model: van_b0 to van_b6.
        output: folder for ablation.csv and the runs. Default: runs/ablation.
        plot: image file for a picture of the trained rows.
        max_pixels: an image with more pixels than this is not decoded.
        settings: they override the recipe short.
    """
    from vankit.study.ablation import ABLATIONS, ablate, summary
    from vankit.study.ablation import plot as draw
    from vankit.study.complexity import complexity

    if train is None and (given(settings) or rows or (plot, seeds, output) != (None, None, None)):
        raise UserError(
            "--rows, --seeds, --output, --plot and training settings are for trained rows: add --train DATA"
        )
    check_picture(plot)
    runs = []
    if train is not None:
        config = recipes.override(recipes.short(model), **given(settings))
        seeds = 3 if seeds is None else seeds
        for run in ablate(train, config, seeds, output or "runs/ablation", rows, model, max_pixels):
            say(f"{run.row}, seed {run.seed}: top-1 {run.top1:.2%}")
            runs.append(run)
    found = summary(runs)
    headings = ("", "parameters, M", "GMACs", "published\nparameters, M", "published\nGMACs", "published\ntop-1 %")
    ours = (f"here\n{train}\ntop-1 %", "seeds") if train is not None else ()
    table = _table(f"{model}, GMACs at 224 px with biases, norms and products", *headings, *ours)
    for row in ABLATIONS:
        cost = complexity(model, lka=row.lka)
        cells = [f"{cost.params / 1e6:.2f}", f"{cost.macs_all / 1e9:.2f}", row.params, row.gmacs, f"{row.top1}"]
        if row.name in found:
            mean, deviation, count = found[row.name]
            cells += [f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}"), str(count)]
        table.add_row(row.name, *cells)
    console().print(table)
    if plot is not None:
        draw(runs, plot, f"{train}, {config.epochs} epochs at {config.img_size} px")
        say(f"picture: {plot}")


@command.command
def compare(models: list[str] | None = None, /, *, seconds: float = 60, plot: Path | None = None) -> None:
    """Compare VAN with ResNet, PVTv2, Swin and ConvNeXt: cost, published accuracy, time per image on this machine.

    Args:
        models: names of timm models. Default: those whose published accuracy is known here.
        seconds: how long to time all models together, after some minutes in which they are compiled; 0 for no timing.
        plot: image file for a picture of accuracy against cost.
    """
    from vankit.study.comparison import comparison
    from vankit.study.comparison import plot as draw

    check_picture(plot)
    rows = comparison(models or (), seconds)
    table = _table("one image at a time, vankit's engine", "", "parameters, M", "GMACs", "top-1 %", "ms", "quartiles")
    for row in rows:
        times = ("", "") if row.ms is None else (f"{row.ms:.1f}", f"{row.ms_low:.1f} – {row.ms_high:.1f}")
        top1 = "" if row.top1 is None else f"{row.top1:.1f}"
        table.add_row(row.model, f"{row.params / 1e6:.1f}", f"{row.macs / 1e9:.2f}", top1, *times)
    console().print(table)
    if plot is not None:
        draw(rows, plot)
        say(f"picture: {plot}")
