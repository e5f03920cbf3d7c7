"""The Transformer and its named architectures; importing this package registers them.

fairseq imports every module here for `--user-dir gqa_fairseq`. The commands load checkpoints
afterwards, with the allowlist that is set here.
"""

from gqa_fairseq.checkpoints.allowlist import allow_fairseq_checkpoints
from gqa_fairseq.models import gqa_transformer, named

__all__ = ["gqa_transformer", "named"]

allow_fairseq_checkpoints()
