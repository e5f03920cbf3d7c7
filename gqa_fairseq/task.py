"""The translation task of the plugin (`--task gqa_translation`).

fairseq-generate takes its task from the command line and not from the checkpoint, so a search of
our own can only come with a task of our own.
"""

from __future__ import annotations

from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask


@register_task("gqa_translation", dataclass=TranslationConfig)
class GroupedQueryTranslationTask(TranslationTask):
    """Translation with binarized parallel text, as in fairseq."""
