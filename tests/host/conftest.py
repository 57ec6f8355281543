"""A real ComfyUI: imported into this process, and run as a server.

Everything that is written goes to a base directory of the test session; the host's own folder stays as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import host_models
import pytest
from comfy_server import COMFYUI, REPOSITORY, ComfyServer, host_is_here, make_base

LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression with which Llama 3 splits text into words; the host supports no other."""

if not host_is_here():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("comfy") / "base")


@pytest.fixture(scope="session")
def comfy(base: Path) -> ModuleType:
    """The host's modules in this process, on the CPU, with the session's base directory."""
    sys.path.insert(0, str(COMFYUI))
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    import comfy.options

    comfy.options.enable_args_parsing()
    # As the host's main.py does first: 0.3.64 then puts its comfy folder, with a utils.py, before everything.
    importlib.import_module("utils.extra_config")
    import comfy.sd

    return comfy


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """This pack, imported as the host imports it: under an arbitrary name."""
    spec = importlib.util.spec_from_file_location("/some/where/pack", REPOSITORY / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    importlib.import_module(".nodes", spec.name)
    return module


@pytest.fixture(scope="session")
def attention(pack: ModuleType) -> ModuleType:
    """The pack's λ inside the UNet."""
    return importlib.import_module(f"{pack.__name__}.nodes.host_attention")


@pytest.fixture(scope="session")
def schedule(pack: ModuleType) -> type:
    """The pack's StrengthSchedule."""
    return importlib.import_module(f"{pack.__name__}.llm4gen_core.attention").StrengthSchedule


@pytest.fixture(scope="session")
def models(base: Path, comfy: ModuleType) -> Path:
    """The host's model folders with SD1.5 checkpoint and UNet, RankGen-like LLM and official adapter."""
    folder = base / "models"
    host_models.fill(folder, COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer")
    return folder


@pytest.fixture(scope="session")
def server(base: Path, models: Path) -> Iterator[ComfyServer]:
    with ComfyServer(base) as running:
        yield running


@pytest.fixture(scope="session")
def small_llama_tokenizer(comfy, tmp_path_factory):
    """A small tokenizer of Llama 3's kind, if the host was installed without its own."""
    import comfy.text_encoders.hunyuan_video as module
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if (COMFYUI / "comfy" / "text_encoders" / "llama_tokenizer" / "tokenizer.json").is_file():
        return
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a red cube on a blue sphere"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    folder = tmp_path_factory.mktemp("llama-tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = content["model"]["merges"]  # as in Llama 3's own file, which is of an older version of the format
    content["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    original = module.LlamaTokenizerFast
    if issubclass(original, PreTrainedTokenizerBase):  # 5 reads nothing but SentencePiece's kind with it
        original = PreTrainedTokenizerFast

    class Small:
        @staticmethod
        def from_pretrained(path, **options):
            return original.from_pretrained(str(folder), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LlamaTokenizerFast", Small)
        yield
