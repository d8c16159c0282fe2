"""The Visual Attention Network (Guo et al., arXiv 2202.09741), registered with timm as `van_b0` to `van_b6`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_model_deprecations
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vankit.errors import UserError
from vankit.models import hub, weights
from vankit.models.leaves import is_depthwise, run
from vankit.models.lka import LargeKernelAttention
from vankit.models.lka_settings import LkaSettings
from vankit.ops import depthwise_gelu

__all__ = ["VAN"]  # register_model adds the entry points

torch.fx.wrap("depthwise_gelu")


class Attention(nn.Module):
    """1x1 → GELU → LKA → 1x1, plus its own shortcut (paper figure 3d)."""

    def __init__(self, dim: int, dilation: int, lka: Mapping[str, Any], **factory: Any) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1, **factory)
        self.lka = LargeKernelAttention(dim, stride_dilation=dilation, **lka, **factory)
        self.proj_2 = nn.Conv2d(dim, dim, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.lka(F.gelu(self.proj_1(x))))


class Mlp(nn.Module):
    """1x1 → depth-wise 3x3 → GELU → 1x1 (paper figure 3d, the convolutional feed-forward)."""

    def __init__(self, dim: int, hidden: int, dilation: int, **factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1, **factory)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden, **factory)
        self.fc2 = nn.Conv2d(hidden, dim, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if torch.jit.is_scripting():
            return self.fc2(F.gelu(self.dw(x)))
        if is_depthwise(self.dw):
            return self.fc2(depthwise_gelu(x, self.dw.weight, self.dw.bias, self.dw.dilation[0]))
        return self.fc2(F.gelu(run(self.dw, x)))


class Block(nn.Module):
    """x + ls1 * Attention(BN(x)), then x + ls2 * Mlp(BN(x)), each branch under drop path."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float,
        dilation: int,
        lka: Mapping[str, Any],
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim, **factory)
        self.attn = Attention(dim, dilation, lka, **factory)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale, **factory))
        self.norm2 = nn.BatchNorm2d(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dilation, **factory)
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale, **factory))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution and a BatchNorm."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int, dilation: int, **factory: Any) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding, dilation, **factory)
        self.norm = nn.BatchNorm2d(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Stage(nn.Module):
    """Patch embedding, blocks, LayerNorm: (B, in_chans, H, W) → (B, dim, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, patch_embed: PatchEmbed, blocks: Sequence[Block], norm: LayerNorm2d) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.patch_embed = patch_embed
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = _recompute(block, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


def _recompute(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), its activations computed again in the backward pass instead of stored."""
    if torch.compiler.is_compiling():  # takes no contexts, and a compiled graph updates the buffers once by itself
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_kept(block)))


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Recomputation must not count a batch in the running statistics a second time."""
    kept = [(m, name, buffer) for m in block.modules() for name, buffer in m.named_buffers(recurse=False)]
    try:
        for module, name, buffer in kept:
            setattr(module, name, buffer.clone())
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


class VAN(nn.Module):
    """Visual Attention Network (arXiv 2202.09741) under timm's model contract.

    Input is (B, in_chans, H, W) of any size from 1x1 up; the four stages `stage1` … `stage4` have strides 4, 8, 16
    and 32 (sizes are rounded up).

    Args:
        in_chans: input channels.
        num_classes: outputs of the linear head; 0 for pooled features.
        global_pool: 'avg', or '' for unpooled (B, C, H, W) features (with num_classes=0).
        output_stride: 8, 16 or 32. Below 32 the last stages keep their resolution and dilate their kernels instead,
            so the same weights compute the same features on a denser grid.
        embed_dims: channels per stage.
        depths: blocks per stage.
        mlp_ratios: hidden width of the MLP over the stage's width.
        drop_rate: dropout before the head, 0 to 1.
        drop_path_rate: stochastic depth of the last block, 0 to 1; it rises linearly from 0 over the blocks.
        layer_scale_init: initial layer scale.
        lka: settings of every `LargeKernelAttention` (`LkaSettings`), such as {"kernel_size": 7, "dilation": 2}; as
            published where left out.

    Raises:
        ValueError: output_stride is not 8, 16 or 32, there are classes but no pooling, or a setting of `lka` is wrong.
    """

    if TYPE_CHECKING:  # not seen at run time: TorchScript would take the annotations for the stages' types
        stage1: nn.Module
        stage2: nn.Module
        stage3: nn.Module
        stage4: nn.Module

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init: float = 1e-2,
        lka: Mapping[str, Any] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UserError(f"output_stride is {output_stride}, but VAN offers 8, 16 and 32")
        _check_head(num_classes, global_pool)
        self.lka = lka = _known_settings(lka or {})
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.num_features = embed_dims[-1]
        feature_info: list[dict[str, Any]] = []

        drop_paths: Iterator[Any] = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        chans, reduction, dilation = in_chans, 1, 1
        for i, (dim, depth, ratio) in enumerate(zip(embed_dims, depths, mlp_ratios, strict=True)):
            kernel_size, stride = (7, 4) if i == 0 else (3, 2)
            before = dilation
            if reduction * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reduction *= stride
            stage = Stage(
                PatchEmbed(chans, dim, kernel_size, stride, before, **factory),
                [Block(dim, ratio, next(drop_paths), layer_scale_init, dilation, lka, **factory) for _ in range(depth)],
                LayerNorm2d(dim, eps=1e-6, **factory),
            )
            # transformers' TimmBackbone finds stages as direct children, so they are not in a Sequential
            self.add_module(f"stage{i + 1}", stage)
            feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stage{i + 1}"})
            chans = dim

        self.feature_info = feature_info  # not annotated on self: TorchScript would read the annotation
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **factory
        )
        self.head_hidden_size = self.head.num_features
        self.apply(_init_weights)

    def _stages(self) -> list[nn.Module]:
        return [stage for name, stage in self.named_children() if name.startswith("stage")]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameter names that optimizers should not decay although the caller may decay vectors: the layer scales."""
        return {name for name, _ in self.named_parameters() if "layer_scale" in name}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters from input to output, for layer-wise learning-rate decay.

        Args:
            coarse: one group per stage instead of one per block.
        """
        if coarse:
            return {"stem": r"^stage1\.patch_embed", "blocks": r"^stage(\d+)"}
        return {
            "stem": r"^stage1\.patch_embed",
            "blocks": [
                (r"^stage(\d+)\.patch_embed", (-1,)),
                (r"^stage(\d+)\.blocks\.(\d+)", None),
                (r"^stage(\d+)\.norm", MATCH_PREV_GROUP),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of storing them."""
        for stage in self._stages():
            if isinstance(stage, Stage):  # not pruned
                stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear head, (B, C) → (B, num_classes), or Identity."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one.

        Args:
            num_classes: outputs of the new head; 0 for none.
            global_pool: 'avg' or ''; None keeps the present pooling.

        Raises:
            ValueError: there would be classes but no pooling.
        """
        _check_head(num_classes, self.head.global_pool.pool_type if global_pool is None else global_pool)
        like = next(self.parameters())  # the old head may have no parameter to take these from
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, device=like.device, dtype=like.dtype)
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs, after the stage's LayerNorm.

        Args:
            x: images, (B, in_chans, H, W).
            indices: the last n stages if int, all if None, else the stages listed (0 to 3, negative from the end).
            norm: accepted for timm's contract; every stage ends with its norm already.
            stop_early: do not run stages beyond the last one asked for.
            output_fmt: only 'NCHW'.
            intermediates_only: return the list alone.

        Returns:
            The list of (B, C, H, W) stage outputs, or (final features, list).

        Raises:
            ValueError: output_fmt is not 'NCHW'.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt is {output_fmt!r}, but VAN's stages are 'NCHW'")
        stages = self._stages()
        take_indices, max_index = feature_take_indices(len(stages), indices)
        intermediates = []
        for i, stage in enumerate(stages[: max_index + 1] if stop_early else stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that the given intermediates do not need, and with them (or on request) the head.

        Args:
            indices: as in `forward_intermediates`.
            prune_norm: accepted for timm's contract; a stage's norm belongs to the stage.
            prune_head: drop pooling and the linear head even if all stages stay.

        Returns:
            The indices of the stages kept as intermediates.
        """
        stages = self._stages()
        take_indices, max_index = feature_take_indices(len(stages), indices)
        pruned = max_index < len(stages) - 1
        for i in range(max_index + 1, len(stages)):
            setattr(self, f"stage{i + 1}", nn.Identity())
        if pruned:
            self.num_features = self.feature_info[max_index]["num_chs"]
        if pruned or prune_head:
            self.reset_classifier(0, "")
        return take_indices

    @torch.jit.ignore
    def load_pretrained(self, path: str) -> None:
        """timm's hook for `pretrained=True` and `pretrained_cfg_overlay=dict(file=path)`: any public format."""
        weights.load_checkpoint(self, path)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # timm reads a `checkpoint_path` by itself, and knows no other names than the model's own
        own = {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        place = next(iter(weights.places(own)), None)
        if place is not None and place.format != "vankit" and place.outer == prefix:
            inside, others = weights.van_at(own, place)
            renamed = weights.rename(inside, place.format, "vankit")
            for name in own.keys() - set(others):
                del state_dict[name]
            state_dict.update({prefix + name: tensor for name, tensor in renamed.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) → the last stage's output, (B, C, ⌈H/32⌉, ⌈W/32⌉)."""
        x = self.stage1(x)  # (B, C1, H/4, W/4)
        x = self.stage2(x)  # (B, C2, H/8, W/8)
        x = self.stage3(x)  # (B, C3, H/16, W/16)
        return self.stage4(x)  # (B, C4, H/32, W/32)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (B, C, h, w) → logits (B, num_classes), or pooled features (B, C) with `pre_logits`."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _check_head(num_classes: int, global_pool: str) -> None:
    if num_classes > 0 and not global_pool:
        raise UserError(
            f"global_pool is '' with num_classes={num_classes}: a linear head needs pooled features; "
            "expected global_pool='avg', or num_classes=0"
        )


def _known_settings(lka: Mapping[str, Any]) -> dict[str, Any]:
    """As a checkpoint's metadata has them."""
    known = LkaSettings.__annotations__
    try:
        settings: dict[str, Any] = json.loads(json.dumps(dict(lka)))
    except (TypeError, ValueError):
        raise UserError(f"lka is {lka!r}: expected a dict of {', '.join(known)}, of numbers, words and lists") from None
    if unknown := sorted(set(settings) - set(known)):
        raise UserError(f"lka has no setting {', '.join(unknown)}: expected some of {', '.join(known)}")
    return settings


def _init_weights(module: nn.Module) -> None:
    """The published initialisation: He fan-out over groups for convolutions, truncated normal for the head."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        assert module.bias is not None  # every convolution here has one
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# (embed dims, depths, MLP ratios): paper table 2 for B0 to B6
VARIANTS: dict[str, dict[str, Any]] = {
    name: {"embed_dims": dims, "depths": depths, "mlp_ratios": (8, 8, 4, 4)}
    for name, dims, depths in (
        ("van_b0", (32, 64, 160, 256), (3, 3, 5, 2)),
        ("van_b1", (64, 128, 320, 512), (2, 2, 4, 2)),
        ("van_b2", (64, 128, 320, 512), (3, 3, 12, 3)),
        ("van_b3", (64, 128, 320, 512), (3, 5, 27, 3)),
        ("van_b4", (64, 128, 320, 512), (3, 6, 40, 3)),
        ("van_b5", (96, 192, 480, 768), (3, 3, 24, 3)),
        ("van_b6", (96, 192, 384, 768), (6, 6, 90, 6)),
    )
}

_SIZES = ("tiny", "small", "base", "large")  # the names of B0 to B3 in the paper's first version

# other names of the published weights: the authors' in VAN-Classification, those of MMPretrain and MMClassification
ALIASES = {
    **{f"van_{size}": f"van_b{i}.in1k" for i, size in enumerate(_SIZES)},
    **{
        f"van-{size}_{origin}_in1k": f"van_b{i}.in1k"
        for origin in ("3rdparty", "8xb128")
        for sizes in (_SIZES, ("b0", "b1", "b2", "b3", "b4"))
        for i, size in enumerate(sizes)
    },
    **{f"van-b{i}_3rdparty_in21k": f"van_b{i}.in22k" for i in (4, 5, 6)},
}


def architecture(name: str) -> str:
    """A model's name without its weights: van_b0 for van_b0, van_b0.cifar10 and van_tiny; others likewise.

    Args:
        name: timm's, or one of `ALIASES`.
    """
    return ALIASES.get(name, name).partition(".")[0]


def variant_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """The variant, van_b0 to van_b6, whose depths and widths these tensors (under vankit's names) have, else None."""
    sizes = weights.sizes_of(state_dict)
    return next((name for name, table in VARIANTS.items() if table == sizes), None)


def is_model(name: str) -> bool:
    """Whether `create_model` knows a model of this name, or it names one on the hub."""
    name = ALIASES.get(name, name)
    return timm.is_model(name) if ":" not in name else not name.endswith(":")


def check_name(name: str) -> None:
    """Refuse what is not the name of a model.

    Raises:
        ValueError: timm knows no such model.
    """
    if not is_model(ALIASES.get(name, name)):
        hint = "; this is a path: pass it as the checkpoint (--checkpoint)" if Path(name).exists() else ""
        raise UserError(f"unknown model {name!r}: expected one of {', '.join(VARIANTS)}, or another timm model{hint}")


def check_van(name: str, lka: Mapping[str, Any]) -> None:
    """Refuse, before data is read, what is not a VAN, tags that there are not, and settings that do not go together.

    Args:
        name: timm's, or one of `ALIASES`.
        lka: settings of the attention, see `vankit.LargeKernelAttention`.

    Raises:
        ValueError: see above.
    """
    check_name(name)
    variant, _, tag = ALIASES.get(name, name).partition(".")
    if variant in VARIANTS and tag and tag not in default_cfgs[variant].tags:
        known = " or ".join([variant, *(f"{variant}.{each}" for each in default_cfgs[variant].tags if each)])
        raise UserError(f"{name} is not the name of public weights: expected {known}")
    # the caller may have registered a VAN of another name, and what the hub has is not known yet
    if ":" not in name and timm.model_entrypoint(variant).__module__.startswith("timm."):
        raise UserError(f"{name} is not a VAN: expected van_b0 to van_b6")
    with torch.device("meta"):
        LargeKernelAttention(VARIANTS["van_b0"]["embed_dims"][0], **_known_settings(lka))


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, with an error that helps where the name is wrong, for any model while `lka` is empty.

    Args:
        name: timm's, or one of `ALIASES`.

    Raises:
        ValueError: timm knows no such model or weights, or `lka` is given for another network than a VAN.
        DownloadError: they are on the hub, and cannot be fetched.
    """
    check_name(name)
    name = ALIASES.get(name, name)
    if not kwargs.get("lka"):
        kwargs.pop("lka", None)
    elif architecture(name) not in VARIANTS:
        raise UserError(f"{name} has no large kernel attention to set: leave out lka, or use {', '.join(VARIANTS)}")
    try:
        with hub.reached(name, kwargs.get("cache_dir")):
            return timm.create_model(name, **kwargs)
    except RuntimeError as error:
        if "pretrained" not in str(error).lower():
            raise
        public = ", ".join(timm.list_pretrained(f"{architecture(name)}.*"))
        raise UserError(f"{name}: {error} Public are {public or 'none'}") from None


def _cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's description of a set of weights; preprocessing is that of the published checkpoints."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "stage1.patch_embed.proj",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2202.09741",
        "paper_name": "Visual Attention Network",
        **kwargs,
    }


def _openmmlab(file: str, **kwargs: Any) -> dict[str, Any]:
    """The same for a file that OpenMMLab has converted from the authors'; its name ends with the sha256's start."""
    return _cfg(url=f"https://download.openmmlab.com/mmclassification/v0/van/{file}", **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "van_b0.in1k": _cfg(
            hf_hub_id="Visual-Attention-Network/VAN-Tiny-original", hf_hub_filename="van_tiny_754.pth.tar"
        ),
        "van_b0.cifar10": _cfg(
            file=str(Path(__file__).with_name("van_b0.cifar10.safetensors")),
            num_classes=10,
            input_size=(3, 64, 64),
            pool_size=(2, 2),
            crop_pct=1.0,
        ),
        "van_b1.in1k": _cfg(
            hf_hub_id="Visual-Attention-Network/VAN-Small-original", hf_hub_filename="van_small_811.pth.tar"
        ),
        "van_b2.in1k": _cfg(
            hf_hub_id="Visual-Attention-Network/VAN-Base-original", hf_hub_filename="van_base_828.pth.tar"
        ),
        "van_b3.in1k": _cfg(
            hf_hub_id="Visual-Attention-Network/VAN-Large-original", hf_hub_filename="van_large_839.pth.tar"
        ),
        "van_b4.in1k": _openmmlab("van-b4_3rdparty_in1k_20220909-f4665b92.pth"),
        "van_b4.in22k": _openmmlab("van-b4_3rdparty_in21k_20220909-db926b18.pth", num_classes=21841),
        "van_b5.in22k": _openmmlab("van-b5_3rdparty_in21k_20220909-18e904e3.pth", num_classes=21841),
        "van_b6.in22k": _openmmlab("van-b6_3rdparty_in21k_20220909-96c2cb3a.pth", num_classes=21841),
    }
)


# what OpenMMLab's table of 283.9 M parameters means; the file itself decides
_WIDER_B6 = (96, 192, 480, 768)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VAN:
    own = kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained:
        # timm resets custom_load when a caller names a file of his own, and cannot fetch into a custom loader
        kwargs["pretrained_cfg_overlay"] = hub.resolve(
            variant, kwargs.get("pretrained_cfg"), own, kwargs.get("cache_dir")
        )
        if variant == "van_b6" and (file := kwargs["pretrained_cfg_overlay"].get("file")):
            widths = weights.sizes_of(weights.read_checkpoint(file).state_dict)["embed_dims"]
            if widths == _WIDER_B6:
                kwargs["embed_dims"] = widths
    elif not kwargs.get("pretrained_cfg"):
        # a plain van_b5 has the paper's classes, not those of weights that nobody asked for
        kwargs["pretrained_cfg_overlay"] = {"num_classes": 1000, **own}
    if kwargs.get("features_only"):
        kwargs["num_classes"] = 0  # timm drops the head only after it has loaded the weights
    model: VAN = build_model_with_cfg(
        VAN, variant, pretrained, feature_cfg={"out_indices": (0, 1, 2, 3)}, **{**VARIANTS[variant], **kwargs}
    )
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    cfg.update({name: own[name] for name in weights.PUBLISHED if name in own})  # outranks what the file said
    return model


@register_model
def van_b0(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B0 (tiny): 4.1 M parameters."""
    return _create("van_b0", pretrained, **kwargs)


@register_model
def van_b1(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B1 (small): 13.9 M parameters."""
    return _create("van_b1", pretrained, **kwargs)


@register_model
def van_b2(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B2 (base): 26.6 M parameters."""
    return _create("van_b2", pretrained, **kwargs)


@register_model
def van_b3(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B3 (large): 44.8 M parameters."""
    return _create("van_b3", pretrained, **kwargs)


@register_model
def van_b4(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B4: 60.3 M parameters."""
    return _create("van_b4", pretrained, **kwargs)


@register_model
def van_b5(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B5: 90.0 M parameters."""
    return _create("van_b5", pretrained, **kwargs)


@register_model
def van_b6(pretrained: bool = False, **kwargs: Any) -> VAN:
    """VAN-B6: 199.8 M parameters."""
    return _create("van_b6", pretrained, **kwargs)


# timm warns that these are old names, and does not list them
register_model_deprecations(__name__, ALIASES)
