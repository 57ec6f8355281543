"""Judge models of transformers: where they are, how they are loaded, and in which precision they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from safetensors import SafetensorError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line
from llm4gen_diffusers.machine import content_hash

from .base import Context, Judge

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG, WEIGHTS = "config.json", "model.safetensors|pytorch_model.bin"
SHARDED_WEIGHTS = "model.safetensors|model.safetensors.index.json|pytorch_model.bin|pytorch_model.bin.index.json"
PREPROCESSOR = "preprocessor_config.json|processor_config.json"
"""Files of a judge's folder, see `Judge.files`."""

_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError)


def load_part(loader: Any, folder: Path, what: str, **options: Any) -> Any:
    """Load a part of a judge model with `loader.from_pretrained(folder, **options)`; `what` names it in errors.

    Raises:
        LLM4GENError: the part cannot be read, or needs a package that is not installed.
    """
    try:
        return loader.from_pretrained(folder, local_files_only=True, **options)
    except ImportError as error:
        raise LLM4GENError(
            f"Judge {folder}: its {what} needs a package that is not installed ({first_line(error)}). Install the "
            "package, or name another judge with the metric's options."
        ) from error
    except _UNREADABLE as error:
        raise LLM4GENError(
            f"Judge {folder}: its {what} cannot be read ({first_line(error)}); download the folder again."
        ) from error


class JudgeModel:
    """Model of transformers in a folder, with all of its weights, for inference.

    transformers initialises weights that a checkpoint lacks at random and only warns. Such a judge is refused.

    Args:
        folder: folder with weights, and tokenizer and preprocessor where the model has them.
        device: torch device name.
        dtype: precision of the weights.

    Attributes:
        loader: class of transformers with `from_pretrained`.
        kind: required `model_type` of the configuration; None accepts any that `loader` does.
        gpu_dtype: precision on a GPU if no option names one.

    Raises:
        LLM4GENError: the folder holds another kind of model, or a part is missing or cannot be read.
    """

    loader: ClassVar[Any]
    kind: ClassVar[str | None] = None
    gpu_dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        config = load_part(transformers.AutoConfig, folder, "config.json")
        if self.kind is not None and config.model_type != self.kind:
            raise LLM4GENError(
                f"Judge {folder} is a model of type {config.model_type!r}; expected type {self.kind!r}. Put the right "
                "model there, or name its folder with the metric's options."
            )
        model, info = load_part(self.loader, folder, "weights", dtype=dtype, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            raise LLM4GENError(
                f"Judge {folder} lacks {len(missing)} of its weights, {missing[0]} among them, which would be random; "
                f"expected a complete {type(model).__name__}. Download the folder again."
            )
        self._model = model.to(device).eval().requires_grad_(False)

    @classmethod
    def from_context(cls, context: Context, judge: Judge) -> Self:
        """Load the judge in its chosen folder, on the context's device, in the chosen precision."""
        return cls(context.folder(judge), context.device, context.dtype(cls.gpu_dtype))

    def _tokenizer_and_images(self) -> tuple[Any, Any]:
        """Tokenizer and image processor of the folder.

        Pillow resizes the images, as in the judges' own code: torchvision's resize gives slightly different pixels, and
        scores would depend on whether it is installed.
        """
        return (
            load_part(transformers.AutoTokenizer, self.folder, "tokenizer"),
            load_part(transformers.AutoImageProcessor, self.folder, "preprocessor", backend="pil"),
        )

    def describe(self) -> dict[str, Any]:
        """Everything that changes what the model says, as JSON values."""
        return {
            "judge": self.folder.name,
            "hash": content_hash(self.folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "transformers": transformers.__version__,
        }
