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

import omegaconf
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.distributed import utils as distributed_utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask

# One process needs argparse.Namespace; a resume on several broadcasts the state as an object
# and meets the config's containers and fairseq's placeholder for tensors too.
ALLOWED = (
    argparse.Namespace,
    distributed_utils._TensorPlaceholder,
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.base.ContainerMetadata,
    omegaconf.base.Metadata,
    omegaconf.nodes.AnyNode,
    omegaconf.nodes.BooleanNode,
    omegaconf.nodes.EnumNode,
    omegaconf.nodes.FloatNode,
    omegaconf.nodes.IntegerNode,
    omegaconf.nodes.StringNode,
    collections.defaultdict,
    collections.OrderedDict,
    builtins.dict,
    builtins.list,
    builtins.int,
    builtins.float,
    builtins.str,
    builtins.bool,
    builtins.tuple,
    typing.Any,
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
