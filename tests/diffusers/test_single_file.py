"""A checkpoint file gives the same models as the diffusers folder of the same weights, and says what it is not."""

import json
import shutil

import pytest
import torch
from checkpoint import checkpoint_state, write_checkpoint
from safetensors.torch import load_file, save_file

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.families import SD15, SDXL, family_class, load_family
from llm4gen_diffusers.families import single_file as module

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def folders(models):
    return {"sd15": models.base, "sdxl": models.sdxl}


@pytest.fixture(scope="module")
def checkpoints(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    return {name: write_checkpoint(folder, path / f"{name}.safetensors") for name, folder in folders.items()}


@pytest.fixture
def changed(folders, tmp_path):
    """A checkpoint that is changed before it is written."""

    def make(name, change, **extra):
        state = {**checkpoint_state(folders[name]), **extra}
        change(state)
        save_file(state, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return make


def load(path, models, **options):
    return load_family(None, path, tokenizer=models.base / "tokenizer", **options)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_same_models_as_from_the_folder(folders, checkpoints, models, name):
    folder, file = load_family(None, folders[name]), load(checkpoints[name], models)
    assert type(file) is type(folder) and file.name == name
    for ours, theirs in zip(
        (file.unet, file.vae, *file.text_encoders), (folder.unet, folder.vae, *folder.text_encoders), strict=True
    ):
        expected = theirs.state_dict()
        found = ours.state_dict()
        assert set(found) == set(expected) and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_same_outputs_as_from_the_folder(folders, checkpoints, models, name):
    """Also what no tensor holds: heads, activations, scaling factors."""
    outputs = []
    for family in (load_family(None, folders[name]), load(checkpoints[name], models)):
        with torch.no_grad():
            text = family.encode_text(["a red cat on a blue chair", "dog " * 80])
            generator = torch.Generator().manual_seed(1)
            latents = torch.randn(2, 4, 8, 8, generator=generator)
            sizes = torch.tensor([[512, 384, 0, 8, 1024, 1024]]).expand(2, -1)
            noise = family.predict(latents, torch.tensor([10, 900]), text.hidden, text.pooled, sizes)
            images = torch.rand(1, 3, 64, 32, generator=generator) * 2 - 1
            outputs.append([text.hidden, noise, *family.encode_images(images), family.decode_latents(latents[:1])])
            if text.pooled is not None:
                outputs[-1].append(text.pooled)
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert outputs[0][1].std() > 0.05


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_sizes_are_told_without_reading_weights(folders, checkpoints, name):
    folder, file = (family_class(None, p).open(p) for p in (folders[name], checkpoints[name]))
    for attribute in ("d_text", "latent_channels", "pixels_per_latent", "native_size", "prediction_type"):
        assert getattr(file, attribute) == getattr(folder, attribute)


def test_half_precision_and_the_dtype_asked_for(folders, models, tmp_path):
    state = {n: t.half() for n, t in checkpoint_state(folders["sd15"]).items()}
    save_file(state, tmp_path / "half.safetensors")
    full = load(tmp_path / "half.safetensors", models, parts=["unet"])
    half = load(tmp_path / "half.safetensors", models, parts=["unet"], unet_dtype=torch.float16)
    assert (full.unet.dtype, half.unet.dtype) == (torch.float32, torch.float16)
    expected = load_family(None, folders["sd15"], parts=["unet"]).unet.conv_in.weight
    assert torch.equal(half.unet.conv_in.weight, expected.half())


def test_a_pickled_checkpoint(folders, models, tmp_path):
    path = write_checkpoint(folders["sd15"], tmp_path / "old.ckpt")
    family, expected = load(path, models), load_family(None, folders["sd15"])
    assert torch.equal(family.unet.conv_out.weight, expected.unet.conv_out.weight)


def test_a_pickled_checkpoint_as_lightning_wraps_it(folders, models, tmp_path):
    flat = write_checkpoint(folders["sd15"], tmp_path / "flat.ckpt")
    torch.save({"state_dict": torch.load(flat, weights_only=True), "global_step": 5}, tmp_path / "nested.ckpt")
    family, expected = load(tmp_path / "nested.ckpt", models), load_family(None, folders["sd15"])
    assert torch.equal(family.unet.conv_out.weight, expected.unet.conv_out.weight)


def test_a_malicious_checkpoint_is_refused_and_not_executed(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({"model.diffusion_model.out.2.weight": Exploit()}, tmp_path / "evil.ckpt")
    with pytest.raises(LLM4GENError, match="nothing was executed"):
        load_family(None, tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


def test_clip_without_the_name_of_its_text_model(changed, folders, models):
    """Stored as by some merging tools."""

    def rename(state):
        for name in [name for name in state if ".transformer.text_model." in name]:
            state[name.replace("text_model.", "")] = state.pop(name)

    family = load(changed("sd15", rename), models, parts=["text"])
    expected = load_family(None, folders["sd15"], parts=["text"])
    assert torch.equal(family.encode_text(["a cat"]).hidden, expected.encode_text(["a cat"]).hidden)


def test_bigg_with_its_projection_as_a_linear_layer(changed, folders, models):
    def transpose(state):
        projection = state.pop("conditioner.embedders.1.model.text_projection")
        state["conditioner.embedders.1.model.text_projection.weight"] = projection.T.contiguous()

    family = load(changed("sdxl", transpose), models, parts=["text"])
    expected = load_family(None, folders["sdxl"], parts=["text"])
    found = family.text_encoders[1].state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.text_encoders[1].state_dict().items())


def test_an_average_beside_the_weights_is_left_out(changed, folders, models):
    average = {f"model_ema.{number}": torch.zeros(2) for number in range(200)}
    family = load(changed("sd15", lambda state: None, **average), models, parts=["unet"])
    expected = load_family(None, folders["sd15"], parts=["unet"])
    assert torch.equal(family.unet.conv_in.weight, expected.unet.conv_in.weight)


def test_v_prediction_is_marked_as_comfyui_reads_it(changed):
    family = SDXL.open(changed("sdxl", lambda state: None, v_pred=torch.zeros(1)))
    assert family.prediction_type == "v_prediction" and family.alphas_cumprod[-1] > 1e-3
    assert SDXL.open(changed("sdxl", lambda state: None)).prediction_type == "epsilon"
    assert SD15.open(changed("sd15", lambda state: None, v_pred=torch.zeros(1))).prediction_type == "epsilon"


def test_zero_terminal_snr_is_marked_as_comfyui_reads_it(changed):
    path = changed("sdxl", lambda state: None, v_pred=torch.zeros(1), ztsnr=torch.zeros(1))
    alphas = SDXL.open(path).alphas_cumprod
    plain = SDXL.open(changed("sdxl", lambda state: None)).alphas_cumprod
    assert alphas[-1] == 0 and torch.isclose(alphas[0], plain[0]) and (alphas[1:] < plain[1:]).all()


@pytest.mark.parametrize("as_checkpoint", [True, False])
def test_a_file_takes_the_place_of_the_bases_unet(folders, models, tmp_path, as_checkpoint):
    """A checkpoint, or the UNet alone without a prefix, as in ComfyUI's models/diffusion_models."""
    prefix = "" if as_checkpoint else UNET
    folder = shutil.copytree(folders["sd15"], tmp_path / "sd15")
    shutil.copytree(models.unet, folder / "unet", dirs_exist_ok=True)
    state = {n.removeprefix(prefix): t for n, t in checkpoint_state(folder).items() if n.startswith(prefix)}
    save_file(state, tmp_path / "unet.safetensors")
    family = load_family(None, folders["sd15"], unet=tmp_path / "unet.safetensors", parts=["unet"])
    expected = load_file(models.unet / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in family.unet.state_dict().items())


def test_a_file_takes_the_place_of_the_bases_vae(folders, checkpoints, tmp_path):
    prefix = "first_stage_model."
    state = {n.removeprefix(prefix): 2 * t for n, t in load_file(checkpoints["sd15"]).items() if n.startswith(prefix)}
    save_file(state, tmp_path / "vae.safetensors")
    base = load_family(None, folders["sd15"], parts=["vae"])
    family = load_family(None, folders["sd15"], vae=tmp_path / "vae.safetensors", parts=["vae"])
    for name, tensor in family.vae.state_dict().items():
        assert torch.equal(tensor, 2 * base.vae.state_dict()[name])
    assert family.vae.config.scaling_factor == 0.18215


# Other files


def drop(prefix):
    def change(state):
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]

    return change


def widen(state):
    name = f"{UNET}input_blocks.0.0.weight"
    state[name] = torch.zeros(state[name].shape[0], 9, 3, 3)


def quantise(part):
    """A scale beside a weight, as in scaled float8."""

    def change(state):
        name = next(name for name in state if name.startswith(part) and name.endswith(".weight"))
        state[name.replace(".weight", ".scale_weight")] = torch.ones(1)

    return change


def only(**tensors):
    def change(state):
        state.clear()
        state |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}

    return change


def unet_alone(state):
    for name in list(state):
        tensor = state.pop(name)
        if name.startswith(UNET):
            state[name.removeprefix(UNET)] = tensor


def as_sd2(state):
    for name in [name for name in state if name.endswith("attn2.to_k.weight")]:
        state[name] = torch.zeros(state[name].shape[0], 1024)


def as_refiner(state):
    state["conditioner.embedders.0.model.ln_final.weight"] = torch.zeros(1)


def prune(state):
    drop(f"{UNET}output_blocks.1.1.transformer_blocks.1.")(state)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd15", widen, "reads 9 channels; expected 4. Inpainting"),
        ("sd15", as_sd2, "is SD2"),
        ("sdxl", as_refiner, "is SDXL's refiner"),
        ("sdxl", lambda state: state.update(edm_mean=torch.zeros(4)), "Playground"),
        ("sd15", only(model__diffusion_model__joint_blocks__0__x_block__attn__qkv__weight=torch.zeros(1)), "is SD3"),
        ("sd15", only(double_blocks__0__img_attn__qkv__weight=torch.zeros(1)), "is Flux"),
        ("sd15", only(lora_unet_x__lora_up__weight=torch.zeros(1)), "is a LoRA"),
        ("sd15", only(other=torch.zeros(1)), "not a checkpoint of Stable Diffusion"),
        ("sd15", unet_alone, "is a UNet by itself"),
        ("sd15", drop("first_stage_model."), "has no VAE"),
        ("sdxl", drop("conditioner.embedders.1."), "has no text encoder"),
        ("sdxl", prune, "whose blocks are not alike"),
        ("sd15", drop(f"{UNET}out.2.weight"), "lacks the tensor out.2.weight"),
        ("sd15", drop(f"{UNET}time_embed.0.bias"), "lacks 1 of its weights (time_embedding.linear_1.bias"),
        ("sd15", drop("first_stage_model.encoder.mid.attn_1.q.bias"), "lacks 1 of its weights"),
        ("sdxl", drop("conditioner.embedders.1.model.text_projection"), "lacks"),
        ("sd15", quantise(f"{UNET}input_blocks.1.1.transformer_blocks"), "as quantised files with scales have"),
        ("sd15", quantise("cond_stage_model.transformer.text_model.encoder"), "as quantised files with scales have"),
        ("sd15", lambda s: s.update({f"{UNET}adapter.weight": torch.zeros(1)}), "and nothing else under its names"),
    ],
)
def test_other_files_are_refused(changed, models, name, change, message):
    path = changed(name, change)
    with pytest.raises(LLM4GENError) as caught:
        load(path, models)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_checkpoint_of_another_family(checkpoints):
    with pytest.raises(LLM4GENError, match="is a checkpoint of sdxl; expected sd15"):
        SD15.open(checkpoints["sdxl"])


def test_a_truncated_checkpoint(checkpoints, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(checkpoints["sd15"].read_bytes()[:-1000])
    with pytest.raises(LLM4GENError, match="truncated"):
        SD15.open(path)


def test_without_a_tokenizer_it_says_where_to_find_one(checkpoints):
    with pytest.raises(LLM4GENError, match="holds no tokenizer; give --tokenizer"):
        load_family(None, checkpoints["sd15"], parts=["text"])


def test_the_tokenizer_of_the_comfyui_around_it(checkpoints, models, tmp_path, monkeypatch):
    shutil.copytree(models.base / "tokenizer", tmp_path / "comfy" / "sd1_tokenizer")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path / "custom_nodes" / "any-name")
    family = load_family(None, checkpoints["sd15"], parts=["text"])
    expected = json.loads((models.base / "tokenizer" / "vocab.json").read_text())
    assert family.tokenizers[0].get_vocab() == expected
