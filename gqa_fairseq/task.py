"""The translation task of the plugin (`--task gqa_translation`).

fairseq-generate takes its task from the command line and not from the checkpoint, so a search of
our own can only come with a task of our own.
"""

from __future__ import annotations

from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask


@register_task("gqa_translation", dataclass=TranslationConfig)
class GroupedQueryTranslationTask(TranslationTask):
    """Translation with binarized parallel text, as in fairseq, that never drops a line."""

    def get_batch_iterator(self, dataset, *args, **kwargs) -> EpochBatchIterator:
        """fairseq's batches; outside training every line is in one.

        fairseq drops the last batch where its size is no multiple of
        `--required-batch-size-multiple` (default 8): up to 7 lines of a test set would go
        untranslated, without a word.
        """
        if dataset is not self.datasets.get(self.cfg.train_subset):
            kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(dataset, *args, **kwargs)
