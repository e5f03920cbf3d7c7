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
import gqa_fairseq.tasks  # noqa: F401  registers them, as the line above
from gqa_fairseq.checkpoints.allowlist import why_unreadable
from gqa_fairseq.finite import require_finite


def load_model(path: Path | str, data_dir: Path | str) -> tuple[BaseFairseqModel, FairseqTask]:
    """Load a checkpoint in evaluation mode, with its task reading the corpus in `data_dir`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no fairseq checkpoint, holds classes that are not allowed, or has
            weights that are infinite or no numbers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        weights, cfg = state["model"], state["cfg"]
        cfg.task.data = str(data_dir)
    except Exception as error:
        raise ValueError(why_unreadable(path, error)) from error
    require_finite(weights.items(), f"{path}: ")
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(weights, strict=True, model_cfg=cfg.model)
    return model.eval(), task
