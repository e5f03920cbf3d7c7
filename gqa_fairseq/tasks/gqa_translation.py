"""The translation task of the plugin (`--task gqa_translation`).

fairseq-generate takes its task from the command line and not from the checkpoint, so the plugin's
search needs a task of the plugin.

No `from __future__ import annotations` here: fairseq reads the dataclass's types at run time.
"""

import ast
from contextlib import nullcontext
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Optional

from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II, OmegaConf, open_dict

from gqa_fairseq.batching import TargetTokenBatches
from gqa_fairseq.decoding.int8 import quantize_int8
from gqa_fairseq.decoding.options import Option
from gqa_fairseq.decoding.rules import OWN_OPTIONS
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.errors import OptionError
from gqa_fairseq.finite import require_finite
from gqa_fairseq.layers import GroupedQueryDecoderLayer
from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.tasks.search_options import check_search

SearchChoice: Any = ChoiceEnum(("gqa", "stock"))

# Options of fairseq's translation task that this one refuses, and why.
REFUSED: dict[str, str] = {
    "num_batch_buckets": "fairseq's code for it fails with this version of numpy: leave it out",
}


def _field(option: Option) -> tuple[str, Any, Any]:
    kind: Any = Optional[option.kind] if option.default is None else option.kind
    return option.name, kind, field(default=option.default, metadata={"help": option.help})


SearchOptions: Any = make_dataclass(
    "SearchOptions", map(_field, OWN_OPTIONS), bases=(TranslationConfig,)
)


@dataclass
class GroupedQueryTranslationConfig(SearchOptions):
    """fairseq's translation task, how to search, and what an update is."""

    search: SearchChoice = field(
        default="gqa", metadata={"help": "gqa: the plugin's search; stock: fairseq's own"}
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
    model_overrides: str = II("common_eval.model_overrides")


@register_task("gqa_translation", dataclass=GroupedQueryTranslationConfig)
class GroupedQueryTranslationTask(TranslationTask):
    """Translation with binarized parallel text, as in fairseq, that never drops a line."""

    @classmethod
    def setup_task(cls, cfg: GroupedQueryTranslationConfig, **kwargs):
        """fairseq's task.

        Raises:
            OptionError: an option that does not work, here as in the methods below.
        """
        for name, reason in REFUSED.items():
            if getattr(cfg, name) != TranslationConfig.__dataclass_fields__[name].default:
                raise OptionError(f"--{name.replace('_', '-')}: {reason}")
        if cfg.upsample_primary == -1:  # fairseq's default, which fails where texts are combined
            cfg.upsample_primary = 1
        return super().setup_task(cfg, **kwargs)

    def build_model(self, cfg, from_checkpoint=False):
        """As in fairseq; a model that is going to be trained is not translated with in 8 bits.

        With --eval-bleu fairseq makes the search before the model has been trained or loaded.
        """
        if not from_checkpoint or self.cfg.eval_bleu:
            self._refuse_int8()
        if not from_checkpoint and not self.cfg.eval_bleu:
            self._refuse_idle_search()
        if from_checkpoint:
            self._override(cfg)
        model = super().build_model(cfg, from_checkpoint)
        model.is_from_checkpoint = from_checkpoint
        return model

    def _override(self, cfg) -> None:
        """Takes over what fairseq leaves out of --model-overrides; weights replace embeddings.

        fairseq overrides what a checkpoint's options have, and an older checkpoint has fewer.
        """
        own = {
            name: value
            for name, value in ast.literal_eval(self.cfg.model_overrides).items()
            if name in GroupedQueryTransformerConfig.__dataclass_fields__
        }
        files = {"encoder_embed_path": None, "decoder_embed_path": None}
        with open_dict(cfg) if OmegaConf.is_config(cfg) else nullcontext():
            for name, value in (files | own).items():
                setattr(cfg, name, value)

    def build_criterion(self, cfg, from_checkpoint=False):
        """As in fairseq: training and validation ask for a loss, translation does not."""
        self._refuse_int8()
        return super().build_criterion(cfg, from_checkpoint)

    def _refuse_int8(self) -> None:
        if self.cfg.int8:
            raise OptionError(
                "--int8 is for translating with a trained model: leave it out of training "
                "and of validation, and --eval-bleu out of translation"
            )

    def _refuse_idle_search(self) -> None:
        given = [*self._own_given(), *(["--search"] if self.cfg.search != "gqa" else [])]
        if given:
            raise OptionError(
                f"{given[0]} is about translating, and training translates only with "
                "--eval-bleu: leave it out, or give both"
            )

    def _own_given(self) -> list[str]:
        """Those of the plugin's own options of a search that were given."""
        return [o.flag for o in OWN_OPTIONS if getattr(self.cfg, o.name) != o.default]

    def load_dataset(self, split: str, *args, **kwargs) -> None:
        """fairseq's dataset; training's makes batches by target tokens if the option is given.

        fairseq's trainer alone says which part of the text it wants; other commands load the
        training text as any other.
        """
        super().load_dataset(split, *args, **kwargs)
        tokens, is_training = self.cfg.target_tokens_per_update, "data_selector" in kwargs
        if is_training and split == self.cfg.train_subset and tokens is not None:
            if len(self.cfg.update_freq) > 1 or tokens < 1:
                raise OptionError(
                    "--target-tokens-per-update: a positive number, one --update-freq"
                )
            batches = self.cfg.distributed_world_size * self.cfg.update_freq[0]
            self.datasets[split] = TargetTokenBatches(
                self.datasets[split], tokens, batches, self.cfg.seed
            )

    def get_batch_iterator(self, dataset, *args, **kwargs) -> EpochBatchIterator:
        """fairseq's batches; outside training every line is in one of them.

        fairseq drops the last lines if their number is no multiple of
        `--required-batch-size-multiple` (default 8): up to 7 lines of a text would not be
        translated, and no message would say so. Which text it is does not matter: the training
        text may be translated and validated on as well. Only fairseq's iterator over updates says
        how it goes on after an epoch.
        """
        is_training = "update_epoch_batch_itr" in kwargs
        if not is_training:
            kwargs["required_batch_size_multiple"] = 1
            if dataset is self.datasets.get(self.cfg.train_subset):
                kwargs["disable_iterator_cache"] = True  # training's batches stay training's
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """The plugin's search unless `--search stock`, alignments or the caller ask for another.

        Raises:
            OptionError: options that exclude each other, or that nothing follows.
        """
        is_ours = (
            seq_gen_cls is None
            and self.cfg.search == "gqa"
            and not getattr(args, "print_alignment", False)
            and not getattr(args, "score_reference", False)
        )
        check_search(args, is_stock=seq_gen_cls is None and not is_ours)
        if is_ours:
            seq_gen_cls = GroupedQueryGenerator
            own = {option.name: getattr(self.cfg, option.name) for option in OWN_OPTIONS}
            extra_gen_cls_kwargs = {**own, **(extra_gen_cls_kwargs or {})}
        elif given := self._own_given():
            raise OptionError(f"{given[0]} needs the plugin's search, without alignments")
        if getattr(args, "print_alignment", False):
            for model in models:
                model.apply(_need_attention)
        try:
            for model in models:
                require_finite(model.named_parameters())  # whatever searches
                if self.cfg.int8:
                    quantize_int8(model)
            return super().build_generator(
                models, args, seq_gen_cls, extra_gen_cls_kwargs, **kwargs
            )
        except OptionError:
            raise
        except (ValueError, AssertionError) as error:
            raise OptionError(str(error)) from error


def _need_attention(module: Any) -> None:
    """Steps return attention from now on, as `make_generation_fast_` with `need_attn`."""
    if isinstance(module, GroupedQueryDecoderLayer):
        module.need_attn = True
