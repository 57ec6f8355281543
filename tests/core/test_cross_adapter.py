"""The Cross-Adapter against the official release's recorded output, and all fusions against numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm4gen_core import CrossAdapter, CrossAdapterConfig, LLM4GENError, fuse, load_adapter
from llm4gen_core.adapter import FUSIONS, QuickGELU

Array = np.ndarray
MakeAdapter = Callable[..., CrossAdapter]

ATTENTION = {f"{name}_proj.{part}" for name in ("llm", "q", "k", "v", "out") for part in ("weight", "bias")}
ATTENTION |= {f"{name}_norm.{part}" for name in ("q", "kv") for part in ("weight", "bias")}
FFN = {"FFN.0.weight", "FFN.0.bias", "FFN.2.weight", "FFN.2.bias"}
PARAMETERS = {
    "cross_adapter": ATTENTION | FFN | {"norm.weight", "norm.bias"},
    "mlp": FFN,
    "cross_attention": ATTENTION,
    "mlp_concat": FFN,
    "cross_attention_concat": ATTENTION,
    "clip_query": ATTENTION | FFN | {"norm.weight", "norm.bias"},
}
REPLACING = ("mlp", "cross_attention")


def relative_error(found: Tensor, expected: Tensor | Array) -> float:
    found64 = found.detach().double().numpy()
    expected64 = np.asarray(expected, dtype=np.float64)
    assert found64.shape == expected64.shape
    return float(np.linalg.norm(found64 - expected64) / np.linalg.norm(expected64))


def reference(
    parameters: dict[str, Array],
    text: Array,
    llm: Array,
    heads: int,
    fusion: str = "cross_adapter",
    mask: Array | None = None,
) -> Array:
    """Official CAM and its ablations in float64, one prompt and one head at a time."""

    def linear(name: str, x: Array) -> Array:
        return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    def layer_norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]

    def ffn(x: Array) -> Array:
        inner = linear("FFN.0", x)
        return linear("FFN.2", inner / (1 + np.exp(-1.702 * inner)))

    def attention(source: Array, context: Array) -> Array:
        query, key, value = linear("q_proj", source), linear("k_proj", context), linear("v_proj", context)
        size = query.shape[-1] // heads
        attended = np.empty_like(query)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = query[:, own] @ key[:, own].T / np.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, own] = (weights / weights.sum(-1, keepdims=True)) @ value[:, own]
        return linear("out_proj", attended)

    results = []
    for i, (c_t, c_l) in enumerate(zip(text, llm, strict=True)):
        if fusion.startswith("mlp"):
            result = ffn(c_l)
        elif fusion == "clip_query":
            seen = c_l if mask is None else c_l[mask[i] != 0]
            hidden = attention(layer_norm("q_norm", c_t), layer_norm("kv_norm", linear("llm_proj", seen))) + c_t
            result = ffn(layer_norm("norm", hidden)) + hidden
        else:
            hidden = linear("llm_proj", c_l)
            result = attention(layer_norm("kv_norm", hidden), layer_norm("q_norm", c_t))
            if fusion == "cross_adapter":
                hidden = result + hidden
                result = ffn(layer_norm("norm", hidden)) + hidden
        if mask is not None and fusion != "clip_query":
            result = result * mask[i][:, None]
        results.append(result)
    return np.stack(results)


def as_arrays(adapter: CrossAdapter) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in adapter.state_dict().items()}


def random_inputs(
    batch: int, text_length: int, llm_length: int, config: CrossAdapterConfig, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(batch, text_length, config.d_text, generator=generator, dtype=torch.float64)
    llm = torch.randn(batch, llm_length, config.d_llm, generator=generator, dtype=torch.float64)
    return text.to(dtype), llm.to(dtype)


@pytest.mark.parametrize("form", ["official_safetensors", "official_pickle"])
def test_equals_the_recorded_output_of_the_release(
    form: str, official_safetensors: Path, request: pytest.FixtureRequest
) -> None:
    golden = load_file(official_safetensors)
    adapter = load_adapter(request.getfixturevalue(form))
    fused = fuse(golden["input.clip"], adapter(golden["input.clip"], golden["input.llm"]))
    assert relative_error(fused, golden["output.fused"]) < 1e-6


def test_the_reference_of_these_tests_equals_the_recorded_output(official_safetensors: Path) -> None:
    golden = {name: tensor.double().numpy() for name, tensor in load_file(official_safetensors).items()}
    parameters = {name.removeprefix("CrossFusionModule.0."): array for name, array in golden.items()}
    adapted = reference(parameters, golden["input.clip"], golden["input.llm"], heads=8)
    fused = np.concatenate([golden["input.clip"], adapted], axis=1)
    assert np.linalg.norm(fused - golden["output.fused"]) / np.linalg.norm(fused) < 1e-6


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("text_length", [77, 154, 231])
@pytest.mark.parametrize("llm_length", [1, 33, 256])
def test_equals_the_reference_for_any_number_of_prompts_and_tokens(
    batch: int, text_length: int, llm_length: int, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    text, llm = random_inputs(batch, text_length, llm_length, adapter.config)
    expected = reference(as_arrays(adapter), text.double().numpy(), llm.double().numpy(), adapter.config.heads)
    assert relative_error(adapter(text, llm), expected) < 1e-6


@pytest.mark.parametrize(("d_text", "d_llm", "heads"), [(8, 40, 1), (64, 96, 8), (96, 32, 12), (6, 5, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_equals_the_reference_for_any_size(
    d_text: int, d_llm: int, heads: int, dtype: torch.dtype, tolerance: float, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(d_text, d_llm, heads).to(dtype)
    text, llm = random_inputs(2, 77, 20, adapter.config, dtype)
    expected = reference(as_arrays(adapter), text.double().numpy(), llm.double().numpy(), heads)
    assert relative_error(adapter(text, llm), expected) < tolerance


def test_the_released_norm_names_are_swapped(make_adapter: MakeAdapter) -> None:
    """`kv_norm` belongs to the query: following the names literally gives another result."""
    adapter = make_adapter()
    text, llm = random_inputs(2, 77, 20, adapter.config)
    parameters = as_arrays(adapter)
    straight = dict(parameters)
    for part in ("weight", "bias"):
        straight[f"q_norm.{part}"] = parameters[f"kv_norm.{part}"]
        straight[f"kv_norm.{part}"] = parameters[f"q_norm.{part}"]
    result = adapter(text, llm)
    arrays = text.double().numpy(), llm.double().numpy(), adapter.config.heads
    assert relative_error(result, reference(parameters, *arrays)) < 1e-6
    assert relative_error(result, reference(straight, *arrays)) > 1e-2


def test_quick_gelu_is_clips_activation() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    expected = [-0.018071310, -0.154204234, 0.0, 0.350388437, 1.935658623]
    assert torch.allclose(QuickGELU()(x), torch.tensor(expected, dtype=torch.float64), atol=1e-9)
    assert not torch.allclose(QuickGELU()(x), torch.nn.functional.gelu(x), atol=1e-3)


def test_prompts_of_a_batch_are_independent(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    text, llm = random_inputs(5, 77, 20, adapter.config)
    together = adapter(text, llm)
    for i in range(5):
        assert relative_error(adapter(text[i : i + 1], llm[i : i + 1]), together[i : i + 1].numpy(force=True)) < 1e-6


def test_without_mask_padding_is_used_as_in_the_release(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    text, llm = random_inputs(1, 77, 20, adapter.config)
    assert bool((adapter(text, llm).abs().sum(-1) > 0).all())


# The ablations of Table 4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_equals_its_reference(fusion: str, masked: bool, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(fusion=fusion).double()
    text, llm = random_inputs(2, 77, 6, adapter.config, torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]) if masked else None
    arrays = text.numpy(), llm.numpy(), adapter.config.heads, fusion
    expected = reference(as_arrays(adapter), *arrays, None if mask is None else mask.numpy())
    assert relative_error(adapter(text, llm, mask), expected) < 1e-13


@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_the_parameters_that_a_fusion_uses_exist(fusion: str, make_adapter: MakeAdapter) -> None:
    assert set(make_adapter(fusion=fusion).state_dict()) == PARAMETERS[fusion]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_gradient_reaches_every_parameter_of_every_fusion(fusion: str, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(fusion=fusion)
    text, llm = random_inputs(2, 9, 7, adapter.config)
    adapter.combine(text, adapter(text, llm)).square().sum().backward()
    reached = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-3}
    assert reached == PARAMETERS[fusion] - {"k_proj.bias"}, "the keys' bias shifts all scores of a query alike"


@pytest.mark.parametrize("strength", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_combine_follows_the_context_layout(fusion: str, strength: float, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(fusion=fusion)
    text, llm = random_inputs(2, 9, 7, adapter.config)
    adapted = adapter(text, llm)
    context = adapter.combine(text, adapted, strength)
    layout = adapter.config.context_layout
    assert layout == {
        "mlp": ("llm",),
        "cross_attention": ("llm",),
        "clip_query": ("text", "text"),
    }.get(fusion, ("text", "llm"))
    lengths = [{"text": 9, "llm": 7}[part] for part in layout]
    assert context.shape == (2, sum(lengths), 16)
    assert torch.equal(context[:, -lengths[-1] :], adapted * strength)
    assert len(layout) == 1 or torch.equal(context[:, :9], text)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_combine_at_strength_zero_is_plain_clip(fusion: str, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(fusion=fusion)
    text, llm = random_inputs(2, 9, 7, adapter.config)
    assert adapter.combine(text, adapter(text, llm), 0.0) is text


@pytest.mark.parametrize("fusion", FUSIONS)
def test_combine_keeps_the_precision_of_clip(fusion: str, make_adapter: MakeAdapter) -> None:
    text, adapted = torch.zeros(1, 7, 16), torch.zeros(1, 7, 16, dtype=torch.bfloat16)
    assert make_adapter(fusion=fusion).combine(text, adapted, 0.5).dtype == torch.float32


@pytest.mark.parametrize("adapted", [(3, 5, 16), (2, 5, 8)])
@pytest.mark.parametrize("fusion", ["cross_adapter", *REPLACING])
def test_combine_refuses_tokens_of_other_prompts_or_widths(
    fusion: str, adapted: tuple[int, ...], make_adapter: MakeAdapter
) -> None:
    with pytest.raises(LLM4GENError, match=r"\[2, 7, 16\].*expected equal batch sizes and widths"):
        make_adapter(fusion=fusion).combine(torch.zeros(2, 7, 16), torch.zeros(adapted))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_zeroes_padding_only(dtype: torch.dtype, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    text, llm = random_inputs(2, 77, 6, adapter.config)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]).to(dtype)
    free, masked = adapter(text, llm), adapter(text, llm, mask)
    assert torch.equal(masked[mask.bool()], free[mask.bool()])
    assert not masked[~mask.bool()].any()


def test_a_gradient_reaches_every_parameter_and_both_inputs(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    text, llm = (tensor.requires_grad_() for tensor in random_inputs(2, 9, 7, adapter.config))
    adapter(text, llm).square().sum().backward()
    # The keys' bias adds the same to every score of a query, which softmax takes away again.
    reached = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-3}
    assert reached == {name for name, _ in adapter.named_parameters()} - {"k_proj.bias"}
    assert adapter.k_proj.bias.grad is not None
    assert text.grad is not None and text.grad.any()
    assert llm.grad is not None and llm.grad.any()


@pytest.mark.filterwarnings("ignore:TF32")
def test_runs_in_bfloat16_near_the_float32_result(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    text, llm = random_inputs(2, 77, 20, adapter.config)
    expected = adapter(text, llm).numpy(force=True)
    # oneDNN's AMX kernels kill the process on virtual machines that announce AMX but do not permit it.
    with torch.backends.mkldnn.flags(enabled=False):
        result = adapter.bfloat16()(text.bfloat16(), llm.bfloat16())
    assert result.dtype == torch.bfloat16
    assert relative_error(result.float(), expected) < 0.03


def test_uses_the_layers_of_a_host(make_adapter: MakeAdapter) -> None:
    class Linear(torch.nn.Linear):
        pass

    class LayerNorm(torch.nn.LayerNorm):
        pass

    class Operations:
        pass

    Operations.Linear, Operations.LayerNorm = Linear, LayerNorm
    adapter = CrossAdapter(CrossAdapterConfig(16, 24, 4), Operations)
    kinds = {type(m) for m in adapter.modules() if isinstance(m, torch.nn.Linear | torch.nn.LayerNorm)}
    assert kinds == {Linear, LayerNorm}


@pytest.mark.parametrize(
    ("text_shape", "llm_shape", "mask_shape", "words"),
    [
        ((1, 77, 20), (1, 5, 24), None, ["text", "[1, 77, 20]", "16"]),
        ((1, 77, 16), (1, 5, 32), None, ["llm", "[1, 5, 32]", "24"]),
        ((77, 16), (1, 5, 24), None, ["text", "[77, 16]"]),
        ((2, 77, 16), (3, 5, 24), None, ["batch size 2", "3"]),
        ((1, 77, 16), (1, 5, 24), (1, 6), ["llm_mask", "[1, 6]", "[1, 5]"]),
    ],
)
def test_mismatched_inputs_are_named(
    text_shape: tuple[int, ...],
    llm_shape: tuple[int, ...],
    mask_shape: tuple[int, ...] | None,
    words: list[str],
    make_adapter: MakeAdapter,
) -> None:
    mask = None if mask_shape is None else torch.ones(mask_shape)
    with pytest.raises(LLM4GENError) as caught:
        make_adapter()(torch.zeros(text_shape), torch.zeros(llm_shape), mask)
    assert all(word in str(caught.value) for word in words)


def test_fuse_starts_with_clip() -> None:
    text, adapted = torch.zeros(2, 77, 8), torch.ones(2, 5, 8)
    fused = fuse(text, adapted)
    assert torch.equal(fused[:, :77], text)
    assert torch.equal(fused[:, 77:], adapted)


def test_fuse_scales_only_the_llm_tokens() -> None:
    text, adapted = torch.randn(2, 7, 8), torch.randn(2, 5, 8)
    fused = fuse(text, adapted, 0.5)
    assert torch.equal(fused[:, :7], text)
    assert torch.equal(fused[:, 7:], 0.5 * adapted)


def test_fuse_at_strength_zero_is_plain_clip() -> None:
    text = torch.randn(2, 7, 8)
    assert fuse(text, torch.randn(2, 5, 8), 0.0) is text


def test_fuse_keeps_the_precision_of_clip() -> None:
    assert fuse(torch.zeros(1, 7, 8), torch.zeros(1, 5, 8, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("adapted", [(3, 5, 8), (2, 5, 9)])
def test_fuse_refuses_mismatched_shapes(adapted: tuple[int, ...]) -> None:
    with pytest.raises(LLM4GENError, match=r"\[2, 7, 8\].*expected equal batch sizes and widths"):
        fuse(torch.zeros(2, 7, 8), torch.zeros(adapted))


@pytest.mark.parametrize("name", ["d_text", "d_llm", "heads"])
@pytest.mark.parametrize("value", [0, -8, 2.0, "8", None, True])
def test_config_refuses_invalid_sizes(name: str, value: object) -> None:
    with pytest.raises(LLM4GENError) as caught:
        CrossAdapterConfig(**{"d_text": 16, "d_llm": 24, "heads": 4, name: value})
    assert f"{name} is {value!r}; expected an integer of at least 1" in str(caught.value)


def test_config_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(LLM4GENError, match="d_text 60 is not divisible by 8 heads; choose"):
        CrossAdapterConfig(60, 96, 8)


def test_config_refuses_an_unknown_fusion() -> None:
    with pytest.raises(LLM4GENError, match="fusion 'sum' is unknown; expected one of cross_adapter.*Update"):
        CrossAdapterConfig(64, 96, 8, "sum")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_config_becomes_a_dictionary_and_back(fusion: str) -> None:
    config = CrossAdapterConfig(64, 96, 8, fusion)
    assert CrossAdapterConfig(**config.to_dict()) == config
