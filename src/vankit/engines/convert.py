"""A network as a model of torch.export, OpenVINO, ONNX, ExecuTorch or LiteRT."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vankit.engines.antialiasing import with_quick_antialiasing
from vankit.engines.base import CLASS_MAPS, UnsupportedNetworkError
from vankit.errors import MissingPackageError
from vankit.models.class_maps import folded, has_class_maps
from vankit.models.fold import fold

_NO_LIMIT = 2**40

# At 32 pixels VAN's last map has size 1, which torch.export would take for a constant
SMALLEST = 33

OPSETS = range(18, 26)  # that torch.onnx converts the operators of a VAN to
WHOLE_OPSETS = range(18, 21)  # that its tracing exporter converts those of detectors and segmenters to


def to_program(
    network: nn.Module, input_size: Sequence[int], dynamic: bool = False, class_maps: bool = False
) -> torch.export.ExportedProgram:
    """Fold a network and capture it with torch.export.

    Args:
        network: (B, C, H, W) → (B, …).
        input_size: (C, H, W).
        dynamic: accept every batch and every size from 33 pixels up, instead of batches of 1 of this size.
        class_maps: see `vankit.models.class_maps.folded`.

    Raises:
        UnsupportedNetworkError: torch.export cannot take it.
    """
    channels, height, width = input_size
    module = folded(network, class_maps).float().cpu()
    example, axes = torch.zeros(1, channels, height, width), None
    if dynamic:
        example = torch.zeros(2, channels, max(height, 2 * SMALLEST), max(width, 2 * SMALLEST))
        axes = {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", min=SMALLEST),
            3: torch.export.Dim("width", min=SMALLEST),
        }
    with _exporting("torch.export"):
        program = torch.export.export(module, (example,), dynamic_shapes=(axes,) if dynamic else None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds this machine's paths, which would be in the file
    return program


def to_openvino(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> Any:
    """As `to_program`, as an `openvino.Model`; input `images`, output `logits`, and of a VAN `CLASS_MAPS`."""
    import openvino

    program = to_program(network, input_size, dynamic, class_maps=True)
    with _exporting("OpenVINO"):
        model = openvino.convert_model(program)
        model.input(0).set_names({"images"})
        for output, name in zip(model.outputs, _output_names(network), strict=False):
            output.set_names({name})
        if not dynamic:  # the converter forgets the size, which the program's kernels were cut for
            model.reshape([1, *input_size])
        return model


def _output_names(network: nn.Module) -> list[str]:
    """Those that are named; a feature extractor has further ones."""
    return ["logits", *[CLASS_MAPS] * has_class_maps(network)]


def to_onnx(
    network: nn.Module, input_size: Sequence[int], dynamic: bool = False, opset: int | None = None, half: bool = False
) -> bytes:
    """As `to_program`, as the bytes of an ONNX file; input `images`, output `logits`, and of a VAN `CLASS_MAPS`.

    Args:
        opset: version of ONNX's operators, one of `OPSETS`; None takes torch.onnx's default.
        half: store weights in 16 bits, to be cast to float32 by whoever runs it.

    Raises:
        ImportError: onnx or onnxscript is missing.
        UnsupportedNetworkError: the network cannot be exported.
    """
    try:
        import onnx_ir.passes.common
        import onnxscript.optimizer
    except ImportError:
        raise MissingPackageError("ONNX needs its packages: pip install 'vankit[onnx]'") from None
    program = to_program(network, input_size, dynamic, class_maps=True)
    names = _output_names(network)
    with _exporting("ONNX"):
        found = torch.onnx.export(
            program, (), opset_version=opset, input_names=["images"], output_names=names, verbose=False
        )
        assert found is not None
        if opset not in (None, given := found.model.opset_imports[""]):  # torch.onnx only logs it
            raise RuntimeError(f"its operators are not in opset {opset}, only in {given}")
        # kernels cut to the size are constants too, however large: else NNCF would not find their weights
        onnxscript.optimizer.optimize(found.model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
        if half:
            _store_in_half(found.model.graph)
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(found.model)  # long, and of no use to who runs it
        return found.model_proto.SerializeToString()


def whole_to_openvino(module: nn.Module, names: Sequence[str], example: torch.Tensor) -> Any:
    """A whole network, see `vankit.heads.whole.as_whole`, as an `openvino.Model` for images of every size.

    Args:
        module: in eval mode, an image (1, 3, H, W) or (1, H, W, 3) → tuple of tensors.
        names: of its outputs; the input is `image`.
        example: an image to trace it with; its sides must not be multiples of 32.

    Raises:
        UnsupportedNetworkError: OpenVINO cannot take it.
    """
    import openvino

    with _exporting("OpenVINO"), _plain_attention():
        shape = [n if n in (1, 3) else -1 for n in example.shape]
        traced = torch.jit.trace(module, (example,), check_trace=False)
        model = openvino.convert_model(traced, example_input=(example,), input=shape)
        model.input(0).set_names({"image"})
        for output, name in zip(model.outputs, names, strict=True):
            output.set_names({name})
        with_quick_antialiasing(model)
        return model


def whole_to_onnx(
    module: nn.Module,
    shapes: Mapping[str, Sequence[int | None]],
    example: torch.Tensor,
    opset: int | None = None,
    half: bool = False,
) -> bytes:
    """As `whole_to_openvino`, as the bytes of an ONNX file, by PyTorch's tracing exporter: torch.export would have to
    know how many objects there may be.

    Args:
        shapes: of its outputs by name; None is any length.
        opset: one of `WHOLE_OPSETS`; None takes the first.
        half: see `to_onnx`.

    Raises:
        UnsupportedNetworkError: the network cannot be exported.
    """
    shapes = {"image": [n if n in (1, 3) else None for n in example.shape], **shapes}
    axes = {name: {i: f"{name}_{i}" for i, n in enumerate(shape) if n is None} for name, shape in shapes.items()}
    file: Any = io.BytesIO()  # which the annotations do not know of
    image, *outputs = shapes
    with _exporting("ONNX"), _plain_attention(), _antialiasing():
        torch.onnx.export(
            module, (example,), file, dynamo=False, opset_version=opset or WHOLE_OPSETS[0], input_names=[image],
            output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
    return _in_half(file.getvalue()) if half else file.getvalue()


def _in_half(content: bytes) -> bytes:
    """The bytes of an ONNX file with its weights in 16 bits."""
    import onnx
    import onnx_ir

    model = onnx_ir.from_proto(onnx.load_model_from_string(content))
    _store_in_half(model.graph)
    return onnx_ir.to_proto(model).SerializeToString()


@contextmanager
def _antialiasing() -> Iterator[None]:
    name = "aten::_upsample_bilinear2d_aa"
    torch.onnx.register_custom_op_symbolic(name, _resize_with_antialias, WHOLE_OPSETS[0])
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(name, WHOLE_OPSETS[0])


def _resize_with_antialias(g: Any, x: Any, size: Any, *_: Any) -> Any:
    """F.interpolate(…, mode="bilinear", antialias=True), which the exporter lacks, in ONNX's operators."""
    from torch.onnx import symbolic_helper

    axis, channels = (g.op("Constant", value_t=torch.tensor([i])) for i in (0, 2))
    sides = symbolic_helper._unpack_list(size) if symbolic_helper._is_packed_list(size) else [size]
    whole = [g.op("Slice", g.op("Shape", x), axis, channels)]
    whole += [g.op("Reshape", side, g.op("Constant", value_t=torch.tensor([-1]))) for side in sides]
    none = g.op("Constant", value_t=torch.zeros(0))
    return g.op(
        "Resize", x, none, none, g.op("Concat", *whole, axis_i=0), mode_s="linear", antialias_i=1, exclude_outside_i=1
    )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """nn.MultiheadAttention as operators that other runtimes have."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _store_in_half(graph: Any) -> None:
    """Float16 in place of every float32 weight of an onnx_ir graph, and a Cast back before it is used."""
    import onnx_ir

    for weight in list(graph.initializers.values()):
        if weight.dtype != onnx_ir.DataType.FLOAT or weight.const_value.size < 2:
            continue
        name = weight.name
        small = onnx_ir.tensor(weight.const_value.numpy().astype("float16"), name=f"{name}_float16")
        stored = onnx_ir.val(small.name, const_value=small)
        cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT})
        weight.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        cast.outputs[0].name = name
        graph.insert_before(graph[0], cast)


def to_executorch(network: nn.Module, input_size: Sequence[int]) -> bytes:
    """As `to_program`, as the bytes of an ExecuTorch program whose convolutions XNNPACK computes.

    Raises:
        ImportError: executorch is missing.
        UnsupportedNetworkError: the network cannot be exported.
    """
    return _executorch(lambda: to_program(network, input_size))


def whole_to_executorch(module: nn.Module, example: torch.Tensor) -> bytes:
    """As `to_executorch`, of a segmenter for pictures of one size, see `vankit.deploy.whole.Whole`.

    Args:
        module: in eval mode, a picture (1, H, W, 3) → logits, which alone are in a tuple.
        example: a picture of that size.
    """
    return _executorch(lambda: torch.export.export(module, (example,)))


def _executorch(program_of: Callable[[], torch.export.ExportedProgram]) -> bytes:
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass
    except ImportError:
        raise MissingPackageError("ExecuTorch needs its package: pip install 'vankit[executorch]'") from None
    with _exporting("ExecuTorch"):
        program = program_of()
        for tensor in program.state_dict.values():
            tensor.requires_grad_(False)  # what is computed from it could not be copied
        program = constant_prop_pass(program)  # XNNPACK does not take a slice of a kernel for weights
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer


class _Named(nn.Module):
    """LiteRT names inputs and outputs after the parameters and keys of a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(images)}


class _NamedSegmenter(_Named):
    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(image)[0]}


def to_litert(network: nn.Module, input_size: Sequence[int]) -> bytes:
    """Fold a network and convert it to the bytes of a LiteRT file; input `images` (1, C, H, W), output `logits`.

    Raises:
        ImportError: litert-torch is missing.
        UnsupportedNetworkError: the network cannot be exported.
    """
    return _litert(_Named(fold(network).float().cpu()), {"images": torch.zeros(1, *input_size)})


def whole_to_litert(module: nn.Module, example: torch.Tensor) -> bytes:
    """As `whole_to_executorch`, as the bytes of a LiteRT file; input `image`, output `logits`."""
    return _litert(_NamedSegmenter(module), {"image": example})


def _litert(named: nn.Module, inputs: dict[str, torch.Tensor]) -> bytes:
    try:
        import litert_torch.progress
    except ImportError:
        raise MissingPackageError("LiteRT needs its converter: pip install 'vankit[litert]'") from None
    litert_torch.progress.console.quiet = True
    with _exporting("LiteRT"):
        return litert_torch.convert(named.eval(), sample_kwargs=inputs).model_content()


@contextmanager
def _exporting(to: str) -> Iterator[None]:
    """Exporters warn of their own insides, and raise whatever they trip over."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnsupportedNetworkError:
        raise
    except Exception as error:
        raise UnsupportedNetworkError(f"{to} cannot take the network: {error}") from error
