"""Loading fairseq checkpoints without letting them run code.

torch.load with `weights_only` refuses every class that is not on an allowlist. fairseq's
checkpoints hold a few harmless containers; they are named here once, and nothing else gets in.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import typing
from pathlib import Path
from typing import Any

import numpy
import omegaconf
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.distributed import utils as distributed_utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask

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
    """Puts ALLOWED on torch's allowlist for this process; `weights_only` stays on."""
    torch.serialization.add_safe_globals(list(ALLOWED))


def load_model(path: Path | str, data_dir: Path | str) -> tuple[BaseFairseqModel, FairseqTask]:
    """Loads a checkpoint in evaluation mode, with its task reading the corpus in `data_dir`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no fairseq checkpoint, or holds classes that are not allowed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        cfg = state["cfg"]
    except Exception as error:
        raise ValueError(
            f"{path} is not a fairseq checkpoint that can be loaded: {_reason(error)}"
        ) from error
    cfg.task.data = str(data_dir)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    return model.eval(), task


def _reason(error: Exception) -> str:
    """One line of torch's page: which class was refused, if one was.

    The rest of the page advises to switch the check off.
    """
    lines = str(error).split("\n")
    refused = next((line for line in lines if "GLOBAL" in line), None)
    return refused.split(". ")[0] if refused else f"{type(error).__name__}: {lines[0]}"
