"""Exact folding for inference: fewer operations, the same function."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from vankit.errors import UserError
from vankit.models.leaves import has_hooks, is_depthwise, is_pointwise
from vankit.models.van import Attention, Block, Mlp, PatchEmbed, Stage

# A channel whose shortcut is scaled by almost nothing, or by very much, keeps its scale: dividing by it would overflow
_LARGEST_RESCALING = 16.0
_REMEDY = "which would be lost: remove or merge it first (LoRA by merge_and_unload), or run the network unfolded"


class FoldedBlock(nn.Module):
    """`vankit.models.van.Block` without norms, layer scales and inner shortcut: these are in its 1x1 convolutions.

    `shortcut` is (1, C, 1, 1), or None where the scale of the shortcut is in the convolutions too.
    """

    shortcut: Tensor | None

    def __init__(self, block: Block, shortcut: Tensor | None) -> None:
        super().__init__()
        self.attn, self.mlp = block.attn, block.mlp
        self.register_buffer("shortcut", shortcut)

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        y = attn.proj_2(attn.lka(F.gelu(attn.proj_1(x))))
        x = (x if self.shortcut is None else x * self.shortcut) + y
        return x + self.mlp(x)


class FoldedNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W) as reductions, which leave the memory layout to the engine: written
    with permutations, as timm does, OpenVINO reorders the whole map twice for it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach()[:, None, None])
        self.bias = nn.Parameter(norm.bias.detach()[:, None, None])
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return x * torch.rsqrt((x * x).mean(1, keepdim=True) + self.eps) * self.weight + self.bias


def fold(model: nn.Module) -> nn.Module:
    """A copy for inference with the norms, layer scales and shortcuts of all its VAN stages folded away, exactly.

    In a block, x + ls1·(BN1(x) + proj_2(…proj_1(BN1(x)))) is s·x + W(…) with s = 1 + ls1·a where BN1(x) = a·x + b. Both
    norms, both layer scales and b go into the 1x1 convolutions around them. The factors s of a stage's blocks go there
    as well: the stage computes with channels divided by what all later blocks would multiply them with. The bias of the
    dilated convolution goes into the next 1x1, the norm of a patch embedding into its convolution. The two depth-wise
    convolutions stay apart, since between them the map is padded with zeros and one merged kernel would differ at the
    borders. All arithmetic is done in float64.

    Parametrisations and pruning become plain weights in the copy. Hooks and wrappers (such as LoRA) stay where folding
    leaves inputs and outputs as they were: on a stage, on large kernel attention and its parts, and on the MLP's
    depth-wise convolution. Elsewhere they are refused.

    Args:
        model: a VAN, or any network with one inside, such as a detector; it is not changed. Without a VAN inside, the
            copy computes the same operations.

    Returns:
        The copy in eval mode: the same outputs up to rounding (at most 1e-12 in float64).

    Raises:
        ValueError: a norm in a VAN has no running statistics, or a module that folding changes has hooks or a wrapper.
    """
    model = _copied(model).eval()
    if _foldable(model):
        return _fold_stage(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _foldable(child):
                setattr(module, name, _fold_stage(child))
    return model


def _foldable(module: nn.Module) -> TypeGuard[Stage]:
    return isinstance(module, Stage) and not isinstance(module.norm, FoldedNorm)


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where pruning or an old weight norm has left a weight that autograd has computed."""
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed_tensors(model)})


def computed_tensors(model: nn.Module) -> list[Tensor]:
    """Those that autograd has computed, such as a pruned weight; PyTorch does not copy them."""
    return [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]


@torch.no_grad()
def _fold_stage(stage: Stage) -> Stage:
    _make_plain(stage)
    blocks = cast(Iterable[Block], stage.blocks)
    scales = [_fold_block(block) for block in blocks]
    rest = torch.ones_like(scales[0])
    for scale in scales:
        rest = rest * scale
    moved = bool((rest.abs() < _LARGEST_RESCALING).all() and (rest.abs() > 1 / _LARGEST_RESCALING).all())
    embed = stage.patch_embed.proj
    _scale_outputs(embed, *_affine(stage.patch_embed.norm))
    # what x is computed as is x · rest: rest falls from the product of all scales to 1 over the blocks
    if moved:
        _scale_outputs(embed, rest)
        for block, scale in zip(blocks, scales, strict=True):
            _scale_inputs(block.attn.proj_1, 1 / rest)
            rest = rest / scale
            _scale_outputs(block.attn.proj_2, rest)
            _scale_inputs(block.mlp.fc1, 1 / rest)
            _scale_outputs(block.mlp.fc2, rest)
    stage.patch_embed = embed  # type: ignore[assignment]
    stage.blocks = nn.Sequential(
        *(
            FoldedBlock(block, None if moved else scale.to(embed.weight.dtype)[None, :, None, None])
            for block, scale in zip(blocks, scales, strict=True)
        )
    )
    stage.norm = FoldedNorm(cast(nn.LayerNorm, stage.norm))
    return stage


def _make_plain(stage: Stage) -> None:
    """Parametrised and pruned weights as plain ones, and an error for what folding would lose."""
    for module in list(stage.modules()):
        if parametrize.is_parametrized(module):
            _fix_parametrisations(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    names = {module: name for name, module in stage.named_modules()}
    for module, kind in _rewritten(stage):
        if has_hooks(module):
            raise UserError(f"cannot fold {names[module]} of a VAN's stage: it has hooks of its own, {_REMEDY}")
        if kind is not None and type(module) is not kind:
            found = f"{type(module).__module__}.{type(module).__name__}"  # wrappers are called Conv2d too
            raise UserError(f"cannot fold {names[module]} of a VAN's stage: it is {found}, {_REMEDY}")


def _fix_parametrisations(module: nn.Module) -> None:
    """As remove_parametrizations would, which also takes them from the network that `module` is a copy of: they share
    the class that holds them."""
    values = {name: getattr(module, name) for name in cast(nn.ModuleDict, module.parametrizations)}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _rewritten(stage: Any) -> Iterator[tuple[nn.Module, type | None]]:
    """What folding replaces or changes the numbers of, and of which type it must be if that matters."""
    yield stage.patch_embed, PatchEmbed
    yield stage.patch_embed.proj, nn.Conv2d
    yield stage.patch_embed.norm, None
    yield stage.blocks, nn.Sequential
    for block in stage.blocks:
        yield block, Block
        yield from ((block.norm1, None), (block.norm2, None), (block.drop_path, None))
        yield from ((block.attn, Attention), (block.mlp, Mlp))
        for conv in (block.attn.proj_1, block.attn.proj_2, block.mlp.fc1, block.mlp.fc2):
            yield conv, nn.Conv2d
    yield stage.norm, LayerNorm2d


def _fold_block(block: Block) -> Tensor:
    """Fold all but the shortcut's scale, which is returned: (C,), float64."""
    a, b = _affine(block.norm1)
    layer_scale = block.layer_scale_1.double()
    _scale_inputs(block.attn.proj_1, a, b)
    _scale_outputs(block.attn.proj_2, layer_scale, layer_scale * b)
    dilated, pw = block.attn.lka.dw_d, block.attn.lka.pw
    if is_depthwise(dilated) and dilated.bias is not None and is_pointwise(pw):
        _scale_inputs(pw, torch.ones_like(a), dilated.bias.double())
        dilated.bias = None
    _scale_inputs(block.mlp.fc1, *_affine(block.norm2))
    _scale_outputs(block.mlp.fc2, block.layer_scale_2.double())
    return 1 + layer_scale * a


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """(a, b), each (C,) float64, with norm(x) = a·x + b for running statistics."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or var is None:
        raise UserError(f"cannot fold {type(norm).__name__}: expected a BatchNorm with running statistics")
    a = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
    return a, norm.bias.double() - a * mean.double()


def _scale_outputs(conv: nn.Conv2d, scale: Tensor, shift: Tensor | float = 0.0) -> None:
    """Make the convolution compute scale·conv(x) + shift."""
    assert conv.bias is not None
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias.copy_(conv.bias.double() * scale + shift)


def _scale_inputs(conv: nn.Conv2d, scale: Tensor, shift: Tensor | None = None) -> None:
    """Make the 1x1 convolution compute conv(scale·x + shift)."""
    assert conv.bias is not None and conv.kernel_size == (1, 1)
    weight = conv.weight.double()
    if shift is not None:
        conv.bias.copy_(conv.bias.double() + weight[:, :, 0, 0] @ shift)
    conv.weight.copy_(weight * scale[:, None, None])
