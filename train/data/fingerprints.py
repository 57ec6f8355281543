"""What identifies a frozen model whose outputs are cached."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_SAID_BY_FILES = ("transformers_version", "torch_dtype", "dtype", "architectures", "model_type")
"""Keys of a configuration that tell about the file it came from; the weights' own dtype is hashed with them."""

_known: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], str]] = WeakKeyDictionary()


def model_fingerprint(module: nn.Module) -> str:
    """A hash of a model's configuration and weights.

    It does not depend on the name or place of the files. About a second for each gigabyte; for the same module with
    the same weights it is computed once.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if torch.is_tensor(tensor)}
    versions = tuple(part for tensor in state.values() for part in (tensor.data_ptr(), tensor._version))
    if module in _known and _known[module][0] == versions:
        return _known[module][1]
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps(_config(module), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.to("cpu").contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    _known[module] = (versions, total.hexdigest())
    return total.hexdigest()


def _config(module: nn.Module) -> dict[str, Any]:
    """The configuration as diffusers (a mapping) or transformers (an object) keep it."""
    config = getattr(module, "config", None)
    if config is None:
        return {}
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in entries.items() if not name.startswith("_") and name not in _SAID_BY_FILES}
