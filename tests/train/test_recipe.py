"""Recipes: the project's own are valid, and errors name the key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm4gen_core import LLM4GENError
from llm4gen_core.adapter import FUSIONS
from train import recipe as module
from train import recipe_file
from train.recipe import Recipe
from train.recipe_file import RECIPES, find_recipe, load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]
OWN = sorted(path.stem for path in RECIPES.glob("*.yaml"))
PATHS = ["model.base=base", "model.llm=llm", "data.sources=images"]
WITHOUT_LLM = ("miniature-base", "miniature-finetune", "sd15-finetune", "table4-finetuned-clip")
SMALL = """
family: sd15
output: out
model: {base: base, llm: llm}
data: {sources: images}
train: {steps: 100, batch_size: 8, micro_batch: 4}
"""


@pytest.fixture
def write(tmp_path):
    """Write a recipe; returns its name."""

    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def small(write):
    """Load the small recipe, changed by overrides."""
    path = write(SMALL)
    return lambda *overrides: load_recipe(path, overrides)


def error(call, *arguments):
    with pytest.raises(LLM4GENError) as caught:
        call(*arguments)
    return str(caught.value)


# The project's recipes


def needed(name: str) -> list[str]:
    return [] if name == "miniature" else PATHS[::2] if name in WITHOUT_LLM else PATHS


@pytest.mark.parametrize("name", OWN)
def test_the_projects_recipes_are_valid_with_paths(name):
    assert load_recipe(name, needed(name)).output == f"runs/{name}"


@pytest.mark.parametrize("name", sorted(set(OWN) - {"miniature"}))
def test_the_projects_recipes_name_missing_values(name):
    message = error(load_recipe, name)
    for override in needed(name):
        key = override.partition("=")[0]
        assert f"{key} is missing; give {key}=" in message


def test_the_papers_numbers():
    """Experimental Details: 2e-5, 256, 20k for SD1.5; 1e-5, 128, 40k for SDXL, then 1024 pixels; length 128."""
    found = {}
    for name in ("sd15", "sdxl-stage1", "sdxl-stage2-1024"):
        recipe = load_recipe(name, PATHS)
        found[name] = (recipe.optimizer.learning_rate, recipe.train.batch_size, recipe.data.resolution)
        assert recipe.llm.max_length == 128 and recipe.trainable.parts == "cam+unet"
    assert found == {
        "sd15": (2e-5, 256, 512),
        "sdxl-stage1": (1e-5, 128, 512),
        "sdxl-stage2-1024": (1e-5, 128, 1024),
    }
    assert load_recipe("sd15", PATHS).train.steps == 20_000
    assert load_recipe("sdxl-stage1", PATHS).train.steps == 40_000
    assert load_recipe("sdxl-stage2-1024", PATHS).data.buckets.enabled


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith("-24gb")])
def test_low_memory_variants_train_the_same_batch(name):
    whole, low = load_recipe(name.removesuffix("-24gb"), PATHS), load_recipe(name, PATHS)
    assert low.train.gradient_checkpointing and low.optimizer.name == "adamw_8bit"
    assert low.train.micro_batch <= whole.train.micro_batch
    same = ("steps", "batch_size", "precision")
    assert [getattr(low.train, key) for key in same] == [getattr(whole.train, key) for key in same]
    assert (low.data, low.llm, low.guidance) == (whole.data, whole.llm, whole.guidance)


def differences(one: dict, other: dict, place: str = "") -> dict[str, object]:
    """Dotted keys whose values differ, with the values of the second recipe."""
    found = {}
    for key, value in one.items():
        if isinstance(value, dict):
            found |= differences(value, other[key], f"{place}{key}.")
        elif value != other[key]:
            found[place + key] = other[key]
    return found


def test_each_row_of_table_4_differs_by_one_setting():
    full = load_recipe("sd15", PATHS).to_dict()
    found = {}
    for name in (name for name in OWN if name.startswith("table4-")):
        found[name.removeprefix("table4-")] = changed = differences(full, load_recipe(name, needed(name)).to_dict())
        assert changed.pop("output") == f"runs/{name}"
    clip = {"model.llm": None, "trainable.parts": "text_encoder", "guidance.alpha": 0}
    fusions = {fusion.replace("_", "-"): {"adapter.fusion": fusion} for fusion in FUSIONS[1:]}
    assert found == {"finetuned-clip": clip, "no-regularisation": {"guidance.alpha": 0}, **fusions}


def test_the_fine_tuned_base_sees_the_same_samples_as_the_method():
    changed = differences(load_recipe("sd15", PATHS).to_dict(), load_recipe("sd15-finetune", PATHS[::2]).to_dict())
    same = {"output": "runs/sd15-finetune", "model.llm": None, "trainable.parts": "unet", "guidance.alpha": 0}
    assert changed == same


# Reading


def test_powers_of_ten_are_numbers(small):
    assert small("optimizer.learning_rate=2e-5").optimizer.learning_rate == 2e-5
    assert small("train.steps=1e4").train.steps == 10_000


def test_a_duplicate_key(write):
    message = error(load_recipe, write(SMALL + "output: other\n"))
    assert "duplicate key output" in message and "line 7" in message


@pytest.mark.parametrize("text", ["a: [", "? [a, b]\n: c", "1: 2", "\tfamily: sd15"])
def test_not_yaml(write, text):
    assert "is not valid YAML" in error(load_recipe, write(text))


def test_anchors_and_merges_are_yaml(write):
    text = SMALL + "validation: &v {every: 5}\nx-more: {<<: *v}\n"
    assert "x-more is not a key" in error(load_recipe, write(text))


@pytest.mark.parametrize("text", ["", "- a\n- b", "words"])
def test_no_keys(write, text):
    assert "has no keys" in error(load_recipe, write(text))


def test_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in error(load_recipe, str(tmp_path / "a.yaml"))


def test_an_unknown_recipe_lists_the_projects():
    message = error(load_recipe, "sd16")
    assert "sd16 does not exist" in message and all(name in message for name in OWN)


def test_a_file_is_preferred_to_the_projects_recipe_of_its_name(write, monkeypatch):
    path = Path(write(SMALL, "sd15.yaml"))
    monkeypatch.chdir(path.parent)
    assert find_recipe("sd15.yaml") == Path("sd15.yaml")
    assert find_recipe("sd15") == RECIPES / "sd15.yaml"


def test_extends_goes_up_a_chain_and_merges_sections(write):
    write(SMALL, "one.yaml")
    write("extends: one.yaml\ntrain: {steps: 200}\nseed: 3", "two.yaml")
    recipe = load_recipe(write("extends: two.yaml\ntrain: {micro_batch: 8}\ndata: {sources: [a, b]}", "three.yaml"))
    assert (recipe.train.steps, recipe.train.batch_size, recipe.train.micro_batch, recipe.seed) == (200, 8, 8, 3)
    assert [source.path for source in recipe.data.sources] == ["a", "b"]


def test_extends_finds_the_projects_recipes_too(write):
    assert load_recipe(write("extends: sd15.yaml\noutput: here"), PATHS).train.steps == 20_000


def test_extends_in_a_circle(write):
    write("extends: two.yaml", "one.yaml")
    assert "extends itself" in error(load_recipe, write("extends: one.yaml", "two.yaml"))


@pytest.mark.parametrize("parent", ["none.yaml", "[a]", "3"])
def test_extends_a_missing_recipe(write, parent):
    assert "expected the name of a recipe beside it" in error(load_recipe, write(f"extends: {parent}\n{SMALL}"))


def test_overrides_of_lists_and_missing_sections(small):
    recipe = small("data.sources=[{path: x, repeats: 2}, y]", "data.cache.latents=true", "validation.prompts=[a, b]")
    assert [(source.path, source.repeats) for source in recipe.data.sources] == [("x", 2), ("y", 1)]
    assert recipe.data.cache.latents and recipe.validation.prompts == ["a", "b"]


def test_an_override_may_contain_an_equals_sign_or_be_empty(small):
    assert small("title=a=b").title == "a=b"
    assert small("checkpoints.keep=").checkpoints.keep is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "expected key=value"),
        ("=5", "expected key=value"),
        ("train..steps=5", "expected key=value"),
        ("train.steps=[", "the value is not valid YAML"),
        ("train.steps.more=5", "train.steps has no keys inside it"),
        ("data.sources.0.path=x", "data.sources has no keys inside it"),
    ],
)
def test_overrides_that_are_not_understood(small, override, message):
    assert message in error(small, override)


# Checking


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # unknown keys
        ("trian.steps=5", "trian is not a key of recipes; closest is train"),
        ("train.step=5", "train.step is not a key of recipes; closest is steps"),
        ("guidance.alhpa=1", "guidance.alhpa is not a key of recipes; closest is alpha"),
        ("data.cache.latent=true", "data.cache.latent is not a key of recipes; closest is latents"),
        ("data.sources=[{pth: x}]", "data.sources.0.pth is not a key of recipes; closest is path"),
        ("loss.xyz=1", "loss.xyz is not a key of recipes; expected one of prediction, min_snr_gamma"),
        # wrong types
        ("train.steps=many", 'train.steps is "many"; expected a whole number'),
        ("train.steps=1.5", "train.steps is 1.5; expected a whole number"),
        ("data.flip=yes", "data.flip is true; expected a number or a word, not true or false"),
        ("guidance.alpha=on", "guidance.alpha is true; expected a number"),
        ("title=2024", "title is 2024; expected text"),
        ("model=x", 'model is "x"; expected keys with values'),
        ("llm.layer=first", 'llm.layer is "first"; expected a whole number or last or mean'),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9]; expected more values"),
        # impossible values
        ("train.precision=fp16", 'train.precision is "fp16"; expected float32, float16 or bfloat16'),
        ("train.steps=0", "train.steps is 0; expected at least 1"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate is NaN; expected a finite number"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1 is 1; expected less than 1"),
        ("data.sources=[]", "data.sources is []; expected at least 1 item"),
        ("data.entities=regex", 'data.entities is "regex"; expected auto, rules, spacy or spacy:PACKAGE'),
        ("adapter.fusion=sum", 'adapter.fusion is "sum"; expected one of cross_adapter, mlp'),
        ("guidance.normalize=all", "guidance.normalize is 'all'; expected one of none, spatial"),
        # values that do not fit together
        ("train.micro_batch=3", "train.micro_batch is 3; expected a divisor of batch_size 8"),
        ("data.caption_dropout=1.5", "data.caption_dropout is 1.5; expected at most 1"),
        ("data.llm_dropout=0.95", "data.caption_dropout + llm_dropout is 1.05; expected at most 1"),
        ("data.resolution=500", "data.resolution is 500; expected a multiple of 8"),
        ("optimizer.warmup_steps=100", "optimizer.warmup_steps is 100; expected less than train.steps 100"),
        ("model.llm=null", "model.llm is missing; give model.llm=PATH"),
        ("trainable.parts=text_encoder", 'model.llm is "llm"; expected nothing, because trainable.parts text_encoder'),
    ],
)
def test_errors_name_their_key(small, override, message):
    assert message in error(small, override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=adafactor", "eps=1e-6"], "optimizer.eps is 1e-06; expected nothing: adafactor has none"),
        (["name=prodigy", "unet_learning_rate=1"], "optimizer.unet_learning_rate is 1.0; expected nothing: prodigy"),
    ],
)
def test_settings_that_an_optimizer_lacks(small, overrides, message):
    assert message in error(small, *(f"optimizer.{override}" for override in overrides))


def test_a_text_encoder_is_trained_for_the_base_s_own_schedule(small):
    overrides = ["trainable.parts=text_encoder", "model.llm=null", "guidance.tokens=clip"]
    assert small(*overrides).trainable.parts == "text_encoder"
    message = error(small, *overrides, "loss.prediction=v_prediction")
    assert 'loss.prediction is "v_prediction"; expected the base\'s own schedule' in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.llm=llm"], 'model.llm is "llm"; expected nothing, because trainable.parts unet trains the UNet'),
        (["model.adapter=a"], 'model.adapter is "a"; expected nothing, because trainable.parts unet trains the UNet'),
        (["data.llm_dropout=0.1"], "data.llm_dropout is 0.1; expected 0 without an LLM"),
        (["guidance.tokens=llm"], 'guidance.tokens is "llm"; expected both or clip: the UNet sees no other tokens'),
        (["model.unet_dtype=bfloat16"], 'model.unet_dtype is "bfloat16"; expected float32, because the UNet is'),
    ],
)
def test_a_unet_is_trained_without_adapter_and_llm(small, overrides, message):
    assert message in error(small, "trainable.parts=unet", "model.llm=null", *overrides)


def test_a_unet_without_adapter_may_be_guided_cached_and_made_to_predict_velocity(small):
    overrides = ["guidance.tokens=clip", "data.cache.text=true", "loss.prediction=v_prediction"]
    recipe = small("trainable.parts=unet", "model.llm=null", *overrides)
    assert recipe.guidance.is_on and recipe.loss.prediction == "v_prediction"


def test_zero_terminal_snr_needs_velocities(small):
    message = error(small, "loss.zero_terminal_snr=true", "loss.prediction=epsilon")
    assert 'loss.prediction is "epsilon"; expected v_prediction with zero_terminal_snr' in message


@pytest.mark.parametrize(
    ("fusion", "tokens", "message"),
    [("clip_query", "llm", "both or clip"), ("mlp", "clip", "both or llm"), ("cross_adapter", "llm", None)],
)
def test_guidance_needs_tokens_that_the_unet_sees(small, fusion, tokens, message):
    overrides = [f"adapter.fusion={fusion}", f"guidance.tokens={tokens}"]
    if message is None:
        assert small(*overrides).guidance.tokens == tokens
    else:
        assert f'guidance.tokens is "{tokens}"; expected {message}' in error(small, *overrides)
        assert small(*overrides, "guidance.alpha=0").guidance.alpha == 0


def test_all_problems_are_in_one_message(small):
    message = error(small, "train.precision=fp16", "guidance.alhpa=1", "output=???")
    assert message.startswith("Recipe mine.yaml: output is missing; give output=FOLDER or write it into the recipe. ")
    assert "guidance.alhpa" in message and "train.precision" in message


def test_an_empty_recipe_names_its_required_keys():
    message = error(parse_recipe, {}, "Recipe x")
    for key in ("family", "output", "model.base", "data.sources", "train.steps", "train.batch_size"):
        assert f"{key} is missing" in message


@pytest.mark.parametrize("name", OWN)
def test_the_stored_recipe_is_the_same(name, write):
    recipe = load_recipe(name, needed(name))
    assert load_recipe(write(recipe.to_yaml())) == recipe
    assert set(yaml.safe_load(recipe.to_yaml())) == set(Recipe.model_fields)


def test_recipes_do_not_change(small):
    with pytest.raises(ValueError, match="frozen"):
        small().train.steps = 5


def test_wrong_values_fail_before_a_model_library_loads(write):
    code = (
        "import sys\nfrom train.__main__ import main\n"
        f"code = main(['run', {write(SMALL)!r}, 'train.steps=many'])\n"
        "print(code, sorted({'diffusers', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "2 []\n"
    assert ended.stderr == 'error: Recipe mine.yaml: train.steps is "many"; expected a whole number.\n'


def test_every_key_is_described():
    """Each field of each section is in its docstring."""
    undescribed = []
    for section in module.Section.__subclasses__():
        names = (name for name in section.model_fields if not recipe_file._section(section, name))
        undescribed += [f"{section.__name__}.{name}" for name in names if f"{name}:" not in _spread(section.__doc__)]
    assert not undescribed


def _spread(text: str | None) -> str:
    """ "betas, eps: of the optimizer" as "betas: eps: of the optimizer"."""
    return str(text).replace(", ", ": ")


# Recipes of older runs

REMOVED = yaml.safe_load(
    "{wordpieces: mean, heads: mean, axis: tokens, support: full, reduction: mean, attributes: each, "
    "stop_gradient: none, time_weight: none, time_window: [0.0, 1.0], max_pairs: 16}"
)
"""Guidance options in recipe.yaml of older runs, with the values that are built in now."""


def test_removed_guidance_options_of_older_runs_are_read():
    content = yaml.safe_load(SMALL)
    expected = parse_recipe(content | {"guidance": {"alpha": 0.5}}, "Recipe")
    assert parse_recipe(content | {"guidance": {"alpha": 0.5, **REMOVED}}, "Recipe") == expected
    assert not set(REMOVED) & set(expected.to_dict()["guidance"])


@pytest.mark.parametrize(("key", "value"), [("heads", "each"), ("max_pairs", 8), ("time_window", [0.0, 0.5])])
def test_a_removed_guidance_option_with_another_value_is_an_error(key, value):
    content = yaml.safe_load(SMALL) | {"guidance": {**REMOVED, key: value}}
    assert f"guidance.{key} is not a key of recipes" in error(parse_recipe, content, "Recipe")
