"""The translation task; importing this package registers it, as fairseq's `--user-dir` does.

fairseq imports `tasks` and `models` of a plugin alone, so the loss and the optimizer of `training`
are registered here as well.
"""

from gqa_fairseq import training
from gqa_fairseq.tasks import gqa_translation

__all__ = ["gqa_translation", "training"]
