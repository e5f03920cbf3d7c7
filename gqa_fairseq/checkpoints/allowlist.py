"""Which classes a checkpoint may hold, so that loading one cannot run code; reads and writes one.

torch.load with `weights_only` refuses every class that is not on an allowlist. fairseq's
checkpoints hold a few harmless containers; they are named here once, and nothing else gets in.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import os
import pickle
import typing
from pathlib import Path
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


def read_state(path: Path) -> dict[str, Any]:
    """What is in a checkpoint, on the CPU; `model` holds its weights by name.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no checkpoint of fairseq's, or holds a class that is not allowed.
    """
    allow_fairseq_checkpoints()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(weight, torch.Tensor) for weight in state["model"].values()):
            raise TypeError("not all of its weights are tensors")
    except OSError:
        raise
    except Exception as error:  # pickle raises many kinds
        raise ValueError(why_unreadable(path, error)) from error
    return state


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all: a full disk leaves nothing behind.

    Raises:
        OSError: the folder cannot be written.
        RuntimeError: the file could not be written to its end.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def why_unreadable(path: Path | str, error: Exception) -> str:
    """One line about a file that could not be read as a checkpoint.

    torch's own is a page, which advises to switch the check off.
    """
    lines = str(error).split("\n")
    refused = next((line.split(". ")[0] for line in lines if "GLOBAL" in line), None)
    if refused:
        reason = refused
    elif isinstance(error, EOFError):
        reason = "it is empty or cut short (EOFError)"
    elif isinstance(error, pickle.UnpicklingError):
        reason = "it is no file of torch.save (UnpicklingError)"
    elif isinstance(error, KeyError):
        reason = f"it has no {error}: these may be weights alone (KeyError: {error})"
    else:
        reason = f"{type(error).__name__}: {lines[0]}"
    return f"{path} is not a fairseq checkpoint that can be loaded: {reason}"
