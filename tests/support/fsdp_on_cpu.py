"""`python -m train` under FSDP 2 on CPUs: accelerate itself offers FSDP for accelerators alone.

Run by torchrun. Nothing of the trainer is changed; accelerate's state is told what its own configuration would say.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_initialise = AcceleratorState.__init__


def _with_fsdp(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
    _initialise(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BasicTransformerBlock", "ResnetBlock2D"],
        )


if __name__ == "__main__":
    AcceleratorState.__init__ = _with_fsdp
    from train.__main__ import main

    sys.exit(main())
