"""What may be asked of a predictor, checked before a network is opened or downloaded."""

from numbers import Integral, Real
from typing import Any

from vankit.deploy.folder import is_exported
from vankit.engines.base import check_options
from vankit.errors import UserError

SMALLEST_TILE = 32  # pixels
LARGEST_OVERLAP = 0.9  # a tenth of a tile forward at a time


def check_request(
    model: object = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    top_k: int | None = None,
    batch_size: int = 1,
    max_pixels: int = 1,
    score: float = 0.0,
    tile: int | None = None,
    overlap: float | None = None,
) -> None:
    """Refuse options that no network could be run with here.

    Args:
        model: see `vankit.Predictor`; an exported folder, which runs on CPUs, refuses devices by itself.
        engine, precision, top_k, batch_size, max_pixels: see `vankit.Predictor`.
        device: one of this machine; 'auto' where the network will run elsewhere, on a cluster.
        score, tile, overlap: see `vankit.DensePredictor`.

    Raises:
        ValueError: an option is out of range, or there is no such device.
    """
    check_options(engine, precision)
    counts: dict[str, Any] = {"top_k": top_k, "batch_size": batch_size, "max_pixels": max_pixels}
    for name, value in counts.items():
        if not isinstance(value, Integral | None):
            raise UserError(f"{name} is {value!r}, expected a whole number")
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more")
    if not isinstance(score, Real) or not 0 <= score <= 1:
        raise UserError(f"score is {score!r}, expected 0 to 1")
    if tile is not None and (not isinstance(tile, Integral) or tile < SMALLEST_TILE):
        raise UserError(f"tile is {tile!r}, expected a whole number of pixels, {SMALLEST_TILE} or more")
    if overlap is not None and (not isinstance(overlap, Real) or not 0 <= overlap <= LARGEST_OVERLAP):
        raise UserError(f"overlap is {overlap!r}, expected 0 to {LARGEST_OVERLAP}")
    if overlap is not None and tile is None:
        raise UserError("overlap is that of tiles: pass `tile` too, such as 640")
    exported = is_exported(model) or getattr(model, "exported", None) is not None
    if device not in ("auto", "cpu") and not exported:
        from vankit.engines.choose import device_for  # PyTorch, which alone knows what there is

        device_for(engine, device)


REQUEST = frozenset(check_request.__kwdefaults__ or ())
