"""Load a fairseq checkpoint without letting it run code.

fairseq looks its models and tasks up by name, and imports those of a `--user-dir` only if the
package was not imported before. So this module imports them itself.
"""

from __future__ import annotations

from pathlib import Path

from fairseq import checkpoint_utils, tasks
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask

import gqa_fairseq.models  # registers what a checkpoint names, and sets the allowlist
import gqa_fairseq.tasks  # noqa: F401


def load_model(path: Path | str, data_dir: Path | str) -> tuple[BaseFairseqModel, FairseqTask]:
    """Load a checkpoint in evaluation mode, with its task reading the corpus in `data_dir`.

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
