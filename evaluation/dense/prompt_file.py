"""Files of prompts: JSONL, the same compressed, or plain text."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.command_line import read_prompts as read_lines

from ..prompts import Prompt, check_prompts, read_prompts, write_prompts

ENDINGS = ".jsonl, .jsonl.gz or .txt"


def read_prompt_file(path: str | os.PathLike[str]) -> list[Prompt]:
    """A set of prompts.

    Args:
        path: .jsonl as `write_prompts` makes it, .jsonl.gz, or .txt with one prompt a line.

    Raises:
        LLM4GENError: it cannot be read, a line is no prompt, an id occurs twice, or there is none.
    """
    path = Path(path)
    if path.name.endswith(".txt"):
        return [Prompt(id=f"{number:05d}", text=text) for number, text in enumerate(read_lines(str(path)), 1)]
    if not path.name.endswith(".gz"):
        return read_prompts(path)
    try:
        lines = gzip.decompress(path.read_bytes()).splitlines()
    except FileNotFoundError:
        raise LLM4GENError(f"Prompt set {path} does not exist; expected a file that ends in {ENDINGS}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise LLM4GENError(f"Prompt set {path} cannot be decompressed ({error}); expected gzip of JSONL.") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(Prompt.model_validate_json(line))
        except ValidationError as error:
            raise LLM4GENError(
                f"Prompt set {path}, line {number}, is no prompt ({error.errors(include_url=False)[0]['msg']}); "
                "expected a JSON object with id, text and, if wanted, category and about."
            ) from error
    return check_prompts(prompts, f"Prompt set {path}")


def write_prompt_file(path: str | os.PathLike[str], prompts: Iterable[Prompt]) -> None:
    """Write a set as .jsonl or .jsonl.gz, whole or not at all.

    Raises:
        LLM4GENError: the name ends in something else.
    """
    path = Path(path)
    if path.name.endswith(".jsonl"):
        write_prompts(path, prompts)
        return
    if not path.name.endswith(".jsonl.gz"):
        raise LLM4GENError(f"Prompt set {path}: expected a name that ends in .jsonl or .jsonl.gz.")
    lines = (json.dumps(prompt.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n" for prompt in prompts)
    content = gzip.compress("".join(lines).encode(), mtime=0)  # no time: the same prompts are the same file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
