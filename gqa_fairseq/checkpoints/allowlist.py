"""Which classes a checkpoint may hold, so that loading one cannot run code.

torch.load with `weights_only` refuses every class that is not on an allowlist. fairseq's
checkpoints hold a few harmless containers; they are named here once, and nothing else gets in.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import typing
from typing import Any

import numpy
import omegaconf
import torch
from fairseq.distributed import utils as distributed_utils

# Each is refused by name in one of fairseq's own runs when it is missing here. This plugin's models
# need none of them for training, resuming and translating in one process.
ALLOWED: tuple[Any, ...] = (
    # Stock architectures without a dataclass keep their options in one.
    argparse.Namespace,
    # A resume in several processes broadcasts the whole state, with its config, as an object.
    distributed_utils._TensorPlaceholder,
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.base.ContainerMetadata,
    omegaconf.base.Metadata,
    omegaconf.nodes.AnyNode,
    collections.defaultdict,
    builtins.dict,
    builtins.list,
    builtins.int,
    typing.Any,
    # --eval-bleu keeps its n-gram counts in arrays, in the state of the meters.
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype("int64")),
    type(numpy.dtype("float64")),
    numpy.empty(0).__reduce__()[0],  # what rebuilds an array; private, and moved in numpy 2
)


def allow_fairseq_checkpoints() -> None:
    """Put ALLOWED on torch's allowlist for this process; `weights_only` stays on."""
    torch.serialization.add_safe_globals(list(ALLOWED))
