"""`vankit serve`: networks over HTTP."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CoercionError, Parameter, Token

from vankit.cli.terminal import say, stopped_by_sigterm
from vankit.engines.base import EngineName, Precision
from vankit.errors import UserError
from vankit.files import read_text

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _read_size(kind: Any, tokens: Sequence[Token]) -> int:
    """Bytes, such as 20MB, 512 KiB or 1000000."""
    text = tokens[0].value.strip()
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z]*)", text)
    if found is None or (unit := _UNITS.get(found[2].upper())) is None:
        message = f"{text!r}, expected bytes, such as 20MB or 512KB."
        raise CoercionError(msg=message, token=tokens[0], target_type=int)
    return int(float(found[1]) * unit)


def command(
    models: list[str],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    workers: int | None = None,
    queue: int = 64,
    max_body: Annotated[int, Parameter(converter=_read_size, show_default=lambda _: "20MB")] = 20_000_000,
    timeout: float = 30.0,
    grace: float = 10.0,
    allow_origin: list[str] | None = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: str = "auto",
    max_pixels: int = 67_108_864,
) -> None:
    """Serve networks over HTTP: a page to drop photographs on, JSON for programs, and the Open Inference Protocol.

    Folders that vankit export wrote are run without PyTorch. A line with the address is printed once clients are
    answered, and to the error stream a line of JSON for each request. SIGTERM and Ctrl-C end it, once it has answered
    what was under way.

    Args:
        models: names such as van_b0.cifar10, checkpoints, or folders that vankit export wrote; NAME=MODEL says what
            clients call it.
        host: address to listen at; 0.0.0.0 for all who can reach this machine.
        port: to listen at; 0 takes a free one.
        token_file: a file with the token that clients have to send. Default: none is needed.
        workers: pictures that are worked on at the same time. Default: one per core.
        queue: pictures that may wait beyond these; more are refused (429).
        max_body: size of the largest request.
        timeout: seconds in which a request has to arrive (else 408) and to be answered (else 503).
        grace: seconds to finish at the end what was begun.
        allow_origin: address of another page, such as https://example.org, whose scripts may ask; repeat the option for
            several.
        engine: what runs the networks: torch, openvino, onnxruntime, or auto for the fastest on the device.
        precision: float32, bf16, int8 (for folders that were exported in int8), or auto: int8 for such a folder, else
            float32.
        device: cpu, cuda or auto.
        max_pixels: a picture with more pixels than this is not decoded, and those decoded at the same time share it.
    """
    from vankit.serving import serve

    with stopped_by_sigterm():  # while networks are opened; then the server itself listens to it
        serve(
        models, host=host, port=port, token=None if token_file is None else _token(token_file), workers=workers,
        queue=queue, max_body=max_body, timeout=timeout, grace=grace, allow_origins=allow_origin or (), engine=engine,
        precision=precision, device=device, max_pixels=max_pixels, ready=_say_ready,
    )  # fmt: skip


def _token(path: Path) -> str:
    token = read_text(path).strip()
    if not token:
        raise UserError(f"{path} is empty: expected a token, such as openssl rand -hex 32 prints")
    return token


def _say_ready(address: str, names: list[str]) -> None:
    say(f"serving {', '.join(names)} at {address} (Ctrl-C ends it)")
