"""The data of a run in one process: scanned, cached, and in the order that the run sees it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from llm4gen_core.entities import entity_backend
from llm4gen_diffusers.families import Family

from .conditioning import Conditioner
from .data.batches import Batch, micro_batches
from .data.cache import TensorCache
from .data.fill import fill_latents, fill_text, latent_cache, text_cache
from .data.fingerprints import model_fingerprint
from .data.manifest import Manifest, Problem
from .data.report import ProblemLog, describe, write_report
from .data.scan import scan
from .recipe import Recipe


class TrainingData:
    """Image-text pairs on their way to the loop.

    Args:
        recipe: checked.
        folder: of the run; reports go there.
        family: encodes images for the cache.
        conditioner: encodes captions for the cache.
        accelerator: which process this is.

    Attributes:
        manifest: what there is.
        parser: backend and version of the entity parser; None where no pairs are needed.
        fingerprint: of everything that the samples consist of; a run can only go on with the same.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, family: Family, conditioner: Conditioner, accelerator: Accelerator
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.cache_folder = Path(recipe.data.cache.folder) if recipe.data.cache.folder else folder / "cache"
        needs_pairs = recipe.guidance.is_on
        self.parser = entity_backend(recipe.data.entities) if needs_pairs else None
        self.manifest = self._scan(needs_pairs)
        self.order = self.manifest.order(recipe.train.batch_size, recipe.seed)
        self.fingerprint = self.manifest.fingerprint
        self.log = ProblemLog(folder) if accelerator.is_main_process else None
        later: list[Problem] = []
        self.latents = self._fill_latents(family, later) if recipe.data.cache.latents else None
        self.text = self._fill_text(family, conditioner) if recipe.data.cache.text else None
        if accelerator.is_main_process:
            summary = write_report(self.manifest, folder, later)
            for line in describe(summary, chain(self.manifest.problems(), later)):
                tqdm.write(line)
            self._say_parser()

    @property
    def samples(self) -> int:
        """Pairs that an epoch sees."""
        return len(self.order)

    def steps(self, first: int, last: int, accumulation: int) -> Generator[list[Batch], None, None]:
        """The micro-batches of this process, `accumulation` a step, for the steps from `first` up to `last`."""
        recipe = self.recipe
        yield from micro_batches(
            self.manifest,
            self.order,
            recipe_data=recipe.data,
            seed=recipe.seed,
            first_step=first,
            steps=last - first,
            micro_batch=recipe.train.micro_batch,
            accumulation=accumulation,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            latent_cache=self.latents,
            text_cache=self.text,
        )

    def report(self, problems: list[Problem]) -> None:
        """Write down samples that could not be read; the first time each is also said."""
        if self.log is None or not problems:
            return
        for problem in self.log.add(problems):
            tqdm.write(f"left out: {problem}")

    def _say_parser(self) -> None:
        if self.parser is not None and self.parser.startswith("rules/"):
            tqdm.write(
                f"Attribute-entity pairs come from the fallback parser ({self.parser}), which knows words and patterns "
                "but no grammar. Install a trained spaCy pipeline such as en_core_web_trf for better ones."
            )

    def _scan(self, needs_pairs: bool) -> Manifest:
        """The main process looks; the others open what it found."""
        with self.accelerator.main_process_first(), Bars(self.accelerator.is_main_process) as bars:
            return scan(self.recipe.data, self.cache_folder, bars, needs_pairs)

    def _fill_latents(self, family: Family, problems: list[Problem]) -> TensorCache:
        folder = self.cache_folder
        identity = {
            "vae": model_fingerprint(family.vae),
            "dtype": self.recipe.model.vae_dtype,
            "pixels_per_latent": family.pixels_per_latent,
        }
        cache = latent_cache(folder, identity)

        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = family.encode_images(pixels.to(self.accelerator.device))
            return mean.cpu(), std.cpu()

        with Bars(self.accelerator.is_main_process) as bars:
            problems += fill_latents(
                self.manifest,
                cache,
                encode,
                seed=self.recipe.seed,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                progress=bars,
            )
        problems[:] = gather_object(problems)
        cache.refresh()
        return cache

    def _fill_text(self, family: Family, conditioner: Conditioner) -> TensorCache:
        model, llm = self.recipe.model, conditioner.llm
        identity: dict[str, Any] = {
            "clip": [model_fingerprint(encoder) for encoder in family.text_encoders],
            "clip_dtype": model.text_dtype,
            "chunks": self.recipe.data.clip_chunks,
            "tokens": [_tokenizer_fingerprint(tokenizer) for tokenizer in family.tokenizers],
        }
        if llm is not None:
            identity |= {
                "llm": model_fingerprint(llm.model),
                "llm_spec": llm.spec.to_json(),
                "llm_tokens": _tokenizer_fingerprint(llm.tokenizer),
            }
        cache = text_cache(self.cache_folder, identity)

        def encode(captions: list[str]) -> list[Mapping[str, Tensor]]:
            features = {name: tensor.cpu() for name, tensor in conditioner.features(captions).items()}
            return [{name: tensor[i].clone() for name, tensor in features.items()} for i in range(len(captions))]

        with Bars(self.accelerator.is_main_process) as bars:
            fill_text(
                self.manifest.captions(),
                cache,
                encode,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                progress=bars,
            )
        self.accelerator.wait_for_everyone()
        cache.refresh()
        return cache


class Bars:
    """Progress bars with time left, one after the other, for the functions that call back with (what, done, total)."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._bar: tqdm[Any] | None = None
        self._what = ""
        self._updated = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self.shown:
            return
        if what != self._what:
            if self._bar is not None:
                self._bar.close()
            self._what, self._bar = what, tqdm(desc=what, total=total or None, dynamic_ncols=True)
        assert self._bar is not None
        self._bar.total = total or None
        now = time.monotonic()
        if now - self._updated > 0.2 or done == total:
            self._bar.update(done - self._bar.n)
            self._updated = now


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    """A tokenizer is what it makes of text: its vocabulary and, of a fast one, all of its rules."""
    import hashlib

    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
