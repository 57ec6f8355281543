"""Small tokenizers and models, built by the tests, which need no downloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from llm4gen_core import CrossAdapter, CrossAdapterConfig, LLM4GENError, load_adapter

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, which is faster for small tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def official_safetensors() -> Path:
    return DATA / "official_cam.safetensors"


@pytest.fixture(scope="session")
def official_pickle() -> Path:
    return DATA / "official_projector.pth"


@pytest.fixture(scope="session")
def official_tensors(official_safetensors: Path) -> dict[str, Tensor]:
    """The official CAM's own keys, without the recorded input and output."""
    tensors = load_file(official_safetensors)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("CrossFusionModule.")}


@pytest.fixture
def make_adapter() -> Callable[..., CrossAdapter]:
    """CAMs with random parameters, including the norms' weights and biases."""

    def make(
        d_text: int = 16, d_llm: int = 24, heads: int = 4, seed: int = 0, fusion: str = "cross_adapter"
    ) -> CrossAdapter:
        generator = torch.Generator().manual_seed(seed)
        adapter = CrossAdapter(CrossAdapterConfig(d_text, d_llm, heads, fusion)).eval()
        for name, parameter in adapter.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.data = noise * parameter.shape[1] ** -0.5
            else:
                parameter.data = 0.5 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return adapter

    return make


@pytest.fixture
def refusal() -> Callable[[Path], str]:
    """Error of `load_adapter` for a file; checks that it names the file and is one line."""

    def load_and_fail(path: Path) -> str:
        with pytest.raises(LLM4GENError) as caught:
            load_adapter(path)
        sentence = str(caught.value)
        assert str(path) in sentence
        assert "\n" not in sentence
        assert sentence.count("Adapter ") >= 1 and sentence.endswith((".", ")."))
        return sentence

    return load_and_fail


WORDS = ("a", "cat", "red", "dog", "on", "the", "mat", "pre", "caf", "is", "big", "blue")


@pytest.fixture(scope="session")
def t5_tokenizer() -> Any:
    """Tokenizer of T5's kind: unigram pieces with a word mark, NFKC, `</s>` at the end; pad 0, end 1, unknown 2."""
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -3.0) for word in WORDS]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyzé:,.()1234567890-"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


@pytest.fixture(scope="session")
def gpt_tokenizer() -> Any:
    """Tokenizer of GPT's kind: byte-level BPE without padding or start token; no token is added."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("r", "e"), ("Ġ", "re"), ("Ġre", "d")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _configurations() -> dict[str, Any]:
    import transformers as t

    blocks = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {
        "t5": lambda n: (
            t.T5Config(
                vocab_size=n, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"
            ),
            t.T5EncoderModel,
        ),
        "llama": lambda n: (t.LlamaConfig(vocab_size=n, **blocks), t.LlamaForCausalLM),
        "gpt2": lambda n: (t.GPT2Config(vocab_size=n, n_embd=32, n_layer=3, n_head=4, n_positions=64), t.GPT2Model),
        "qwen3": lambda n: (
            t.Qwen3Config(vocab_size=n, head_dim=8, num_key_value_heads=2, **blocks),
            t.Qwen3ForCausalLM,
        ),
        "gemma3": lambda n: (
            t.Gemma3TextConfig(
                vocab_size=n, head_dim=8, num_key_value_heads=2, query_pre_attn_scalar=8, sliding_window=64, **blocks
            ),
            t.Gemma3ForCausalLM,
        ),
        # the two halves have different sizes, as in T5Gemma 9B-2B
        "t5gemma": lambda n: (
            t.T5GemmaConfig(
                vocab_size=n,
                encoder=t.T5GemmaModuleConfig(
                    vocab_size=n, head_dim=8, num_key_value_heads=2, query_pre_attn_scalar=8, **blocks
                ),
                decoder=t.T5GemmaModuleConfig(
                    vocab_size=n,
                    head_dim=8,
                    num_key_value_heads=2,
                    query_pre_attn_scalar=8,
                    cross_attention_hidden_size=32,
                    **{**blocks, "hidden_size": 16, "num_hidden_layers": 2},
                ),
            ),
            t.T5GemmaForConditionalGeneration,
        ),
        "bert": lambda n: (t.BertConfig(vocab_size=n, max_position_embeddings=64, **blocks), t.BertModel),
        "roberta": lambda n: (
            t.RobertaConfig(vocab_size=n, max_position_embeddings=64, pad_token_id=0, **blocks),
            t.RobertaModel,
        ),
        "bart": lambda n: (
            t.BartConfig(
                vocab_size=n,
                d_model=32,
                encoder_layers=3,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                max_position_embeddings=64,
            ),
            t.BartModel,
        ),
    }


@pytest.fixture
def build_model(t5_tokenizer: Any, gpt_tokenizer: Any) -> Callable[[str], tuple[Any, Any]]:
    """(model, tokenizer) of a kind, with random but not tiny weights, the same on every call."""

    def build(kind: str) -> tuple[Any, Any]:
        tokenizer = gpt_tokenizer if kind in ("llama", "gpt2", "qwen3") else t5_tokenizer
        config, model_class = _configurations()[kind](len(tokenizer))
        torch.manual_seed(7)
        model = model_class(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and "ln_" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return model, tokenizer

    return build


@pytest.fixture
def build_folder(build_model: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Path, Any, Any]]:
    """(folder, model, tokenizer): the model as a Hugging Face folder."""

    def build(kind: str, name: str = "llm") -> tuple[Path, Any, Any]:
        model, tokenizer = build_model(kind)
        folder = tmp_path / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder, model, tokenizer

    return build


@pytest.fixture
def rankgen_folder(build_folder: Callable[..., Any]) -> Callable[[str], tuple[Path, Any, Any]]:
    """RankGen's layout: the T5 encoder under `t5_encoder.`, with an unused projection."""

    def build(file: str) -> tuple[Path, Any, Any]:
        folder, model, tokenizer = build_folder("t5", f"rankgen-{file}")
        (folder / "model.safetensors").unlink()
        tensors = {f"t5_encoder.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
        tensors["projection.weight"] = torch.ones(32, 32)
        if file.endswith(".safetensors"):
            save_file(tensors, folder / file, {"format": "pt"})
        else:
            torch.save(tensors, folder / file)
        return folder, model, tokenizer

    return build


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change fields of a JSON file."""

    def edit(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return edit
