"""Every sampler and every scheduler of the host, and its compiled UNet, with fused conditionings: in this process.

The UNet is SD1.5's in narrow, which predicts in milliseconds.
"""

from __future__ import annotations

import ast
import importlib

import host_models
import pytest
import torch
from comfy_server import COMFYUI

MODES = ("embedding", "value", "decoupled")
LLM = 40
"""Tokens of the LLM."""


def names_in_the_host(*lists):
    """Strings of lists in the host's source, which is imported only when the tests run."""
    source = ast.parse((COMFYUI / "comfy" / "samplers.py").read_text(encoding="utf-8"))
    names = []
    for statement in source.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) in lists:
            value = statement.value
            keys = value.keys if isinstance(value, ast.Dict) else ast.walk(value)
            names += [key.value for key in keys if isinstance(key, ast.Constant)]
    return names


SAMPLERS = names_in_the_host("KSAMPLER_NAMES", "SAMPLER_NAMES")
SCHEDULERS = names_in_the_host("SCHEDULER_HANDLERS")


@pytest.fixture(scope="module")
def model(comfy):
    return host_models.narrow_sd15(levels=1)


@pytest.fixture(scope="module")
def sides(pack, models):
    """(plain, fused), each (positive, negative)."""
    core = importlib.import_module(f"{pack.__name__}.llm4gen_core")
    nodes = {name: importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in ("conditioning", "host")}
    adapter = nodes["host"].HostAdapter.load("projector.pth")
    spec = core.LLMSpec(model="", architecture="t5", layers=3, width=host_models.LLM_WIDTH)

    def encode(seed):
        generator = torch.Generator().manual_seed(seed)
        plain = [[torch.randn(1, 77, 768, generator=generator), {}]]
        hidden = torch.randn(1, LLM, host_models.LLM_WIDTH, generator=generator)
        features = core.LLMFeatures(hidden, torch.ones(1, LLM, dtype=torch.long), spec)
        with torch.inference_mode():
            return plain, nodes["conditioning"].fuse_conditioning(adapter, plain, features, 1.0)

    return tuple(zip(encode(1), encode(2), strict=True))


def generate(model, sides, sampler="euler", scheduler="normal", steps=3):
    import comfy.sample

    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 5)
    # Some samplers take more noise from the generator of the process.
    torch.manual_seed(6)
    return comfy.sample.sample(model, noise, steps, 3.0, sampler, scheduler, *sides, latent, disable_pbar=True, seed=5)


@pytest.fixture
def check(model, sides, attention, schedule):
    """Generate with LLM4GEN, and with λ = 0, with the settings that a sampler or a scheduler needs."""

    def run(**asked):
        from comfy.patcher_extension import WrappersMP

        plain, fused = sides
        evaluations, calls = [], []
        watched = attention.patch_attention(model, "decoupled", schedule(0.6, 0.3))

        def evaluate(executor, *arguments, **options):
            evaluations.append(1)
            return executor(*arguments, **options)

        def call(executor, x, timesteps, context, *arguments, **options):
            calls.append((len(x), tuple(context.shape)))
            return executor(x, timesteps, context, *arguments, **options)

        watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", evaluate)
        watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", call)
        image, without = generate(watched, fused, **asked), generate(model, plain, **asked)
        assert image.isfinite().all()
        assert not torch.equal(image, without)
        assert len(calls) == len(evaluations) > 0, "a model evaluation is one UNet call"
        assert set(calls) == {(2, (2, 77 + LLM, 768))}, "for both sides of guidance"
        off = attention.patch_attention(model, "decoupled", schedule(0.0, 0.0))
        assert torch.equal(generate(off, fused, **asked), without)

    return run


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler(check, name):
    check(sampler=name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler(check, name):
    check(scheduler=name)


def test_the_lists_are_complete(comfy):
    """Other packs may have added theirs."""
    import comfy.samplers

    assert len(SAMPLERS) > 30 and len(SCHEDULERS) > 8
    assert set(SAMPLERS) <= set(comfy.samplers.KSampler.SAMPLERS)
    assert set(SCHEDULERS) <= set(comfy.samplers.KSampler.SCHEDULERS)


# A compiled UNet


@pytest.fixture
def compiled():
    """(the host's node for it, graphs that were compiled). In dynamo's eager backend, which gets inductor's graphs."""
    node = importlib.import_module("comfy_extras.nodes_torch_compile").TorchCompileModel
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield lambda model: node.execute(model, backend)[0], graphs
    torch._dynamo.reset()


def same(a, b):
    return ((a - b).norm() / b.norm()).item() < 1e-5


def test_a_compiled_unet_accepts_fused_conditionings(model, sides, compiled):
    compile_model, graphs = compiled
    assert same(generate(compile_model(model), sides[1]), generate(model, sides[1]))
    assert graphs


@pytest.mark.parametrize("patch_first", [True, False], ids=["compiled last", "compiled first"])
@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_unet_follows_the_schedule(model, sides, attention, schedule, compiled, mode, patch_first):
    """λ is 0 in the first steps and then changes; the host's node compiles without guards on that."""
    compile_model, graphs = compiled
    late = schedule(0.9, 0.2, start_percent=0.4)
    if patch_first:
        found = compile_model(attention.patch_attention(model, mode, late))
    else:
        found = attention.patch_attention(compile_model(model), mode, late)
    plain, fused = sides
    expected = generate(attention.patch_attention(model, mode, late), fused, steps=6)
    assert not torch.equal(expected, generate(model, plain, steps=6))
    for _ in range(2):
        assert same(generate(found, fused, steps=6), expected)
    assert not graphs, "with λ of its own a step runs uncompiled"
