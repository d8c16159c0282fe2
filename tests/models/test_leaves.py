"""The network as a module: what people hang on its convolutions takes effect, and tools see all of them."""

import copy
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from vankit.models.leaves import is_depthwise, is_plain, is_pointwise, run
from vankit.models.lka import LargeKernelAttention
from vankit.models.van import VAN
from vankit.study.complexity import complexity, layers

CONVOLUTIONS = (
    "attn.proj_1",
    "attn.lka.dw",
    "attn.lka.dw_d",
    "attn.lka.pw",
    "attn.proj_2",
    "mlp.fc1",
    "mlp.dw",
    "mlp.fc2",
)
every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
jit = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")


def small(**kwargs: Any) -> VAN:
    """Eval mode, every parameter random, layer scales so large that each convolution shows in the logits."""
    torch.manual_seed(0)
    options = {"num_classes": 5, "embed_dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)}
    model = VAN(**options | kwargs)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.2, 1.2)
    return model.eval()


def images(*size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, *(size or (64, 64)), generator=torch.Generator().manual_seed(1)).to(dtype)


def convolution(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(f"stage2.blocks.0.{name}")


def callable_leaves(model: nn.Module) -> dict[nn.Module, str]:
    return {m: n for n, m in model.named_modules() if not list(m.children()) and not isinstance(m, nn.ModuleList)}


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))


# --- hooks ---


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_on_all_leaves_fire(register: str) -> None:
    model = timm.create_model("van_b0", num_classes=10)
    leaves, fired = callable_leaves(model), Counter()
    for leaf in leaves:
        getattr(leaf, register)(lambda module, *_: fired.update([leaves[module]]))
    model(images(32, 32).requires_grad_()).sum().backward()
    # a block has one drop path for its two branches
    assert fired == {name: 2 if name.endswith("drop_path") else 1 for name in leaves.values()}


def test_global_hooks_see_every_module() -> None:
    model, seen = small(), Counter()
    handle = register_module_forward_hook(lambda module, *_: seen.update([module]))
    try:
        model(images())
    finally:
        handle.remove()
    assert seen.keys() == {m for m in model.modules() if not isinstance(m, nn.ModuleList)}


@every_convolution
def test_what_a_hook_returns_is_what_counts(name: str) -> None:
    model, twice, x = small(dtype=torch.float64), small(dtype=torch.float64), images(dtype=torch.float64)
    with torch.no_grad():
        for parameter in convolution(twice, name).parameters():
            parameter *= 2
    before = model(x)
    handle = convolution(model, name).register_forward_hook(lambda _, __, output: 2 * output)
    torch.testing.assert_close(model(x), twice(x))
    assert not torch.allclose(before, twice(x))
    handle.remove()
    assert torch.equal(model(x), before)


@every_convolution
def test_a_forward_put_on_the_instance_is_called(name: str) -> None:
    model, x = small(), images()
    conv = convolution(model, name)
    forward = conv.forward
    conv.forward = lambda x: 3 * forward(x)
    found = model(x)
    del conv.forward
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter *= 3
    torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize("size", [(64, 64), (33, 57), (1, 1)])
def test_called_leaves_compute_the_same(size: tuple[int, int], output_stride: int) -> None:
    model = small(dtype=torch.float64, output_stride=output_stride)
    hooked, x = copy.deepcopy(model), images(*size, dtype=torch.float64)
    for leaf in callable_leaves(hooked):
        leaf.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(hooked(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(hooked, x), gradients(model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["dw_d", "pw"])
def test_gradients_of_hooked_convolutions_are_right_in_bfloat16_on_cpu(name: str, autocast: bool) -> None:
    """PyTorch's are off by their own size, or NaN, see docs/architecture.md."""
    lka = LargeKernelAttention(32, gate="none").to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in lka.parameters():
            parameter.copy_(parameter.bfloat16())
    x = torch.randn(2, 32, 48, 40, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    exact = copy.deepcopy(lka).double()
    wanted = torch.autograd.grad(exact(x.double()).sum(), exact.dw_d.weight)[0]
    getattr(lka, name).register_forward_hook(lambda *_: None)
    if not autocast:
        lka, x = lka.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = lka(x.contiguous(memory_format=torch.channels_last))
    assert out.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(out.sum(), lka.dw_d.weight)
    assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


# --- graphs ---


def hooked_small() -> VAN:
    """Its logits are those of the same network with other weights, if the hooks are heeded."""
    model = small()
    for name in CONVOLUTIONS:
        convolution(model, name).register_forward_hook(_halved)
    return model


def _halved(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output / 2


def halved_small() -> VAN:
    model = small()
    with torch.no_grad():
        for name in CONVOLUTIONS:
            for parameter in convolution(model, name).parameters():
                parameter /= 2
    return model


@jit
def test_hooks_are_heeded_by_traces_and_fx() -> None:
    wider = images(96, 80)
    expected = halved_small()(wider)
    assert not torch.allclose(expected, small()(wider))
    torch.testing.assert_close(torch.jit.trace(hooked_small(), images())(wider), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(hooked_small())(wider), expected)


@jit
def test_hooks_are_heeded_by_torchscript() -> None:
    model = small()
    handle = convolution(model, "mlp.dw").register_forward_hook(_scripted_hook)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    handle.remove()
    for parameter in convolution(model, "mlp.dw").parameters():
        parameter.data *= 0.5
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(images()), model(images()))


def _scripted_hook(self, x: tuple[Tensor], output: Tensor) -> Tensor:
    return output / 2


@pytest.mark.slow
def test_hooks_are_heeded_by_compile_export_and_checkpointing() -> None:
    x, expected = images(), halved_small()(images())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(hooked_small(), backend="aot_eager", fullgraph=True)(x), expected)
    for strict in (False, True):
        torch.testing.assert_close(torch.export.export(hooked_small(), (x,), strict=strict).module()(x), expected)
    model, plain = hooked_small(), halved_small()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), expected)
    name = "stage3.blocks.0.mlp.dw"
    torch.testing.assert_close(*(torch.autograd.grad(m(x).sum(), m.get_submodule(name).weight) for m in (model, plain)))


# --- weights that are computed ---


@every_convolution
@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, torch.nn.utils.weight_norm, parametrizations.spectral_norm]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norms(norm: Callable[[nn.Module], nn.Module], name: str) -> None:
    model, x = small(dtype=torch.float64), images(dtype=torch.float64)
    plain = copy.deepcopy(model)
    conv = norm(convolution(model, name))
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in conv.parameters())
    optimizer.step()
    found = model(x)
    convolution(plain, name).load_state_dict({"weight": conv.weight, "bias": conv.bias})
    torch.testing.assert_close(found, plain(x))


@every_convolution
def test_a_parametrisation_is_computed_anew_in_every_call(name: str) -> None:
    class Scaled(nn.Module):
        factor = 1.0

        def forward(self, weight: Tensor) -> Tensor:
            return self.factor * weight

    model, x = small(), images()
    before, conv = model(x), convolution(model, name)
    scaled = Scaled()
    parametrize.register_parametrization(conv, "weight", scaled)
    torch.testing.assert_close(model(x), before)
    scaled.factor = 0.0
    found = model(x)
    parametrize.remove_parametrizations(conv, "weight")
    assert conv.weight.count_nonzero() == 0
    torch.testing.assert_close(found, model(x))


def test_pruning_twice_while_training_is_a_network_masked_by_hand() -> None:
    model, masked = small(dtype=torch.float64).train(), small(dtype=torch.float64).train()
    modules = [(convolution(model, name), convolution(masked, name)) for name in CONVOLUTIONS]
    masks = {conv: torch.ones_like(conv.weight) for _, conv in modules}
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (model, masked)]
    for amount in (0.3, 0.5):
        for pruned, conv in modules:
            prune.l1_unstructured(pruned, "weight", amount)
            kept = conv.weight.detach().abs()[masks[conv] > 0]
            smallest = kept.sort().values[round(amount * len(kept)) - 1]
            masks[conv] *= conv.weight.detach().abs() > smallest
        optimizers[0] = torch.optim.SGD(model.parameters(), lr=1e-3)  # pruning makes new parameters
        for step in range(2):
            x = images(dtype=torch.float64) + step
            for conv, mask in masks.items():
                conv.weight.data *= mask
            losses = [m(x).square().mean() for m in (model, masked)]
            torch.testing.assert_close(losses[0], losses[1])
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
            for conv, mask in masks.items():
                conv.weight.grad *= mask
            for optimizer in optimizers:
                optimizer.step()
    for pruned, conv in modules:
        prune.remove(pruned, "weight")
        torch.testing.assert_close(pruned.weight, conv.weight)
        assert is_plain(pruned)
        assert 0.6 < (pruned.weight == 0).double().mean() < 0.7  # 0.3 + 0.5 · 0.7
    model.eval(), masked.eval()
    torch.testing.assert_close(model(images(dtype=torch.float64)), masked(images(dtype=torch.float64)))


# --- wrappers and conversions ---


@pytest.mark.parametrize("targets", [["pw"], ["stage1.blocks.0.attn.lka.dw"], ["pw", "proj_1", "fc2"]])
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_lora(targets: list[str]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, x = small(), images()
    before = model(x)
    config = peft.LoraConfig(r=8, target_modules=targets)
    tuned = peft.get_peft_model(model, config)
    torch.testing.assert_close(tuned(x), before)
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    for _ in range(2):  # lora_B starts at zero, and lora_A has no gradient before it has moved
        optimizer.zero_grad()
        tuned(x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    after = tuned(x)
    assert (after - before).abs().max() > 1e-4
    if "pw" in targets:  # peft merges no depth-wise adapters
        merged = tuned.merge_and_unload()
        assert isinstance(merged, VAN)
        torch.testing.assert_close(merged(x), after, rtol=1e-4, atol=1e-5)


def test_synchronised_batch_norm() -> None:
    model, x = small(), images()
    expected, names = model(x), list(model.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(x), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_head_quantised_by_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: it is large")
    model, x = small(num_classes=64), images()
    expected, plain = model(x), copy.deepcopy(model.get_classifier().weight)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.get_classifier().weight) is not nn.Parameter
    found, step = model(x), plain.abs().amax(1) / 127
    inputs = model.forward_head(model.forward_features(x), pre_logits=True)
    assert ((found - expected).abs() <= inputs.abs().sum(1, keepdim=True) * step * 0.51 + 1e-5).all()
    assert not torch.equal(found, expected)


# --- tools that count ---


def test_fvcore_counts_every_convolution() -> None:
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    model = timm.create_model("van_b0").eval()
    count = fvcore.FlopCountAnalysis(model, images(224, 224, batch=1))
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    operators = count.by_operator()
    assert operators["conv"] + operators["linear"] == complexity("van_b0").macs == 864_224_000
    by_module = count.by_module()
    assert by_module["stage1.blocks.0.attn.lka.dw_d"] == 49 * 32 * 56 * 56
    assert by_module["stage1.blocks.0.mlp.dw"] == 9 * 256 * 56 * 56


def test_torchinfo_counts_every_convolution() -> None:
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    model = timm.create_model("van_b0").eval()
    found = torchinfo.summary(model, input_data=images(224, 224, batch=1), verbose=0)
    macs = {kind: sum(r.macs for r in found.summary_list if r.class_name == kind) for kind in ("Conv2d", "Linear")}
    costs = layers("van_b0")
    # with the bias as one more tap
    kinds = {"patch embedding", "1x1", "depth-wise", "dilated depth-wise", "MLP depth-wise"}
    assert macs["Conv2d"] == sum(cost.macs_all for (_, kind), cost in costs.items() if kind in kinds)
    assert macs["Linear"] == costs["head", "linear"].macs_all
    assert found.total_params == complexity("van_b0").params


def test_pytorchs_own_counter_agrees() -> None:
    model = timm.create_model("van_b0").eval()
    with FlopCounterMode(display=False) as counter:
        model(images(224, 224, batch=1))
    assert counter.get_total_flops() == 2 * complexity("van_b0").macs


# --- what is plain ---


@pytest.mark.parametrize(
    ("conv", "depthwise", "pointwise"),
    [
        (nn.Conv2d(4, 4, 5, padding=2, groups=4), True, False),
        (nn.Conv2d(4, 4, 7, padding=9, dilation=3, groups=4), True, False),
        (nn.Conv1d(4, 4, 4, padding="same", groups=4), True, False),
        (nn.Conv3d(4, 6, 1), False, True),
        (nn.Conv2d(4, 4, 3, padding=1), False, False),
    ],
)
def test_plain_convolutions(conv: nn.Module, depthwise: bool, pointwise: bool) -> None:
    assert is_plain(conv)
    assert (is_depthwise(conv), is_pointwise(conv)) == (depthwise, pointwise)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="circular"),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2),
        nn.Conv2d(4, 4, 5, padding=1, groups=4),
        nn.Conv2d(4, 4, 5, padding="valid", groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=(1, 2), dilation=(1, 2), groups=4),
    ],
)
def test_other_convolutions_are_called(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 4, 9, 10)
    assert not is_plain(conv)
    torch.testing.assert_close(run(conv, x), conv(x))


def test_a_convolution_put_in_place_of_another_computes_what_it_does_elsewhere() -> None:
    model, x = small(), images()
    block = model.stage1.blocks[0]
    circular = nn.Conv2d(16, 16, 5, padding=2, groups=16, padding_mode="circular")
    dense = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
    block.mlp.dw, block.attn.lka.pw = circular, dense
    y = torch.randn(2, 8, 12, 10)
    torch.testing.assert_close(block.mlp(y), block.mlp.fc2(nn.functional.gelu(circular(block.mlp.fc1(y)))))
    lka = block.attn.lka
    torch.testing.assert_close(lka(y), y * dense(lka.dw_d(lka.dw(y))))
    assert model(x).shape == (2, 5)
