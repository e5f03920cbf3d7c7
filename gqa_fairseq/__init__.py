"""fairseq plugin (`--user-dir gqa_fairseq`): importing it registers the models and the task."""

from gqa_fairseq import architectures, model, task
from gqa_fairseq.checkpoint import allow_fairseq_checkpoints

allow_fairseq_checkpoints()

__all__ = ["architectures", "model", "task"]
