"""A network as a model of torch.export, OpenVINO or ONNX."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vankit.errors import MissingPackageError, UserError
from vankit.models.fold import fold


class UnsupportedNetworkError(UserError):
    """torch.export, or the exporter of a format, cannot take the network."""


_NO_LIMIT = 2**40

# At 32 pixels VAN's last map has size 1, which torch.export would take for a constant
SMALLEST = 33


def to_program(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> torch.export.ExportedProgram:
    """Fold a network and capture it with torch.export.

    Args:
        network: (B, C, H, W) → (B, …).
        input_size: (C, H, W).
        dynamic: accept every batch and every size from 33 pixels up, instead of batches of 1 of this size.

    Raises:
        UnsupportedNetworkError: torch.export cannot take it.
    """
    channels, height, width = input_size
    folded = fold(network).float().cpu()
    example, axes = torch.zeros(1, channels, height, width), None
    if dynamic:
        example = torch.zeros(2, channels, max(height, 2 * SMALLEST), max(width, 2 * SMALLEST))
        axes = {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", min=SMALLEST),
            3: torch.export.Dim("width", min=SMALLEST),
        }
    with _exporting("torch.export"):
        program = torch.export.export(folded, (example,), dynamic_shapes=(axes,) if dynamic else None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds this machine's paths, which would be in the file
    return program


def to_openvino(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> Any:
    """As `to_program`, as an `openvino.Model`; input `images`, output `logits`."""
    import openvino

    program = to_program(network, input_size, dynamic)
    with _exporting("OpenVINO"):
        model = openvino.convert_model(program)
        model.input(0).set_names({"images"})
        model.output(0).set_names({"logits"})
        if not dynamic:  # the converter forgets the size, which the program's kernels were cut for
            model.reshape([1, *input_size])
        return model


def to_onnx(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> bytes:
    """As `to_program`, as the bytes of an ONNX file; input `images`, output `logits`.

    Raises:
        ImportError: onnx or onnxscript is missing.
        UnsupportedNetworkError: the network cannot be exported.
    """
    try:
        import onnx_ir.passes.common
        import onnxscript.optimizer
    except ImportError:
        raise MissingPackageError("ONNX needs its packages: pip install 'vankit[onnx]'") from None
    program = to_program(network, input_size, dynamic)
    with _exporting("ONNX"):
        found = torch.onnx.export(program, (), input_names=["images"], output_names=["logits"], verbose=False)
        assert found is not None
        # kernels cut to the size are constants too, however large: else NNCF would not find their weights
        onnxscript.optimizer.optimize(found.model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(found.model)  # long, and of no use to who runs it
        return found.model_proto.SerializeToString()


def whole_to_openvino(module: nn.Module, names: Sequence[str]) -> Any:
    """A network of `vankit.heads.whole.as_whole` as an `openvino.Model` for images of every size.

    Args:
        module: (1, 3, H, W) → tuple of tensors.
        names: of its outputs; the input is `image`.

    Raises:
        UnsupportedNetworkError: it cannot be converted.
    """
    import openvino

    with _exporting("OpenVINO"), _plain_attention():
        traced = torch.jit.trace(module, _EXAMPLE, check_trace=False)
        model = openvino.convert_model(traced, example_input=_EXAMPLE)
        model.input(0).set_names({"image"})
        for output, name in zip(model.outputs, names, strict=True):
            output.set_names({name})
        model.reshape([1, 3, -1, -1])
        return model


def whole_to_onnx(module: nn.Module, names: Sequence[str], opset: int = 18) -> bytes:
    """As `whole_to_openvino`, as the bytes of an ONNX file; its dynamic axes are `height`, `width` and `objects`.

    Args:
        opset: of ONNX's operators.
    """
    axes = {"image": {2: "height", 3: "width"}, **{name: {0: "objects"} for name in names}}
    file = io.BytesIO()
    with _exporting("ONNX"), _plain_attention():
        # dynamo=True would want to know how many objects there may be
        torch.onnx.export(
            module, _EXAMPLE, file, input_names=["image"], output_names=list(names), dynamic_axes=axes,  # type: ignore[arg-type]
            opset_version=opset, dynamo=False, verbose=False,
        )  # fmt: skip
    return file.getvalue()


# its sides differ, and 32 does not divide them
_EXAMPLE = (torch.rand(1, 3, 70, 100, generator=torch.Generator().manual_seed(0)),)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """nn.MultiheadAttention as operators that other runtimes have."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _exporting(to: str) -> Iterator[None]:
    """Exporters warn of their own insides, and raise whatever they trip over."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise UnsupportedNetworkError(f"{to} cannot take the network: {error}") from error
