"""The translation task of the plugin (`--task gqa_translation`).

fairseq-generate takes its task from the command line and not from the checkpoint, so a search of
our own can only come with a task of our own.

No `from __future__ import annotations` here: fairseq reads the dataclass's types at run time.
"""

import sys
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II

from gqa_fairseq.batching import TargetTokenBatches
from gqa_fairseq.decoding.int8 import quantize_int8
from gqa_fairseq.decoding.search import GroupedQueryGenerator

SearchChoice: Any = ChoiceEnum(("gqa", "stock"))


@dataclass
class GroupedQueryTranslationConfig(TranslationConfig):
    """fairseq's translation task, how to search, and what an update is."""

    search: SearchChoice = field(
        default="gqa", metadata={"help": "gqa: the plugin's search; stock: fairseq's own"}
    )
    gnmt_alpha: Optional[float] = field(
        default=None,
        metadata={
            "help": "GNMT length penalty, in place of --lenpen: "
            "scores / ((5 + length) / 6) ** alpha"
        },
    )
    int8: bool = field(
        default=False, metadata={"help": "translate with linear layers in 8 bits (CPU)"}
    )
    target_tokens_per_update: Optional[int] = field(
        default=None,
        metadata={
            "help": "mean target tokens of an update, padding not counted, over all devices and "
            "--update-freq; --max-tokens still bounds a batch with its padding"
        },
    )
    update_freq: list[int] = II("optimization.update_freq")
    distributed_world_size: int = II("distributed_training.distributed_world_size")
    seed: int = II("common.seed")


@register_task("gqa_translation", dataclass=GroupedQueryTranslationConfig)
class GroupedQueryTranslationTask(TranslationTask):
    """Translation with binarized parallel text, as in fairseq, that never drops a line."""

    def load_dataset(self, split: str, *args, **kwargs) -> None:
        """fairseq's dataset; that of training makes batches by target tokens where it should."""
        super().load_dataset(split, *args, **kwargs)
        tokens = self.cfg.target_tokens_per_update
        if split == self.cfg.train_subset and tokens is not None:
            if len(self.cfg.update_freq) > 1 or tokens < 1:
                sys.exit("error: --target-tokens-per-update: a positive number, one --update-freq")
            batches = self.cfg.distributed_world_size * self.cfg.update_freq[0]
            self.datasets[split] = TargetTokenBatches(
                self.datasets[split], tokens, batches, self.cfg.seed
            )

    def get_batch_iterator(self, dataset, *args, **kwargs) -> EpochBatchIterator:
        """fairseq's batches; outside training every line is in one.

        fairseq drops the last batch where its size is no multiple of
        `--required-batch-size-multiple` (default 8): up to 7 lines of a test set would go
        untranslated, without a word.
        """
        if dataset is not self.datasets.get(self.cfg.train_subset):
            kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """The plugin's search unless `--search stock`, alignments or the caller ask for another.

        fairseq's commands catch nothing: options that do not go together end the process with one
        line.
        """
        is_ours = (
            seq_gen_cls is None
            and self.cfg.search == "gqa"
            and not getattr(args, "print_alignment", False)
            and not getattr(args, "score_reference", False)
        )
        if is_ours:
            seq_gen_cls = GroupedQueryGenerator
            extra = {"gnmt_alpha": self.cfg.gnmt_alpha}
            extra_gen_cls_kwargs = {**extra, **(extra_gen_cls_kwargs or {})}
        elif self.cfg.gnmt_alpha is not None:
            sys.exit("error: --gnmt-alpha needs the plugin's search, without alignments")
        try:
            for model in models if self.cfg.int8 else ():
                quantize_int8(model)
            return super().build_generator(
                models, args, seq_gen_cls, extra_gen_cls_kwargs, **kwargs
            )
        except (ValueError, AssertionError) as error:
            sys.exit(f"error: {error}")
