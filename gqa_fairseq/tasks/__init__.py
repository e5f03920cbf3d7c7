"""The translation task; importing this package registers it, as fairseq's `--user-dir` does."""

from gqa_fairseq.tasks import gqa_translation

__all__ = ["gqa_translation"]
