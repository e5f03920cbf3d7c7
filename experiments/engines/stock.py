"""fairseq's own Transformer and search, with multi-head attention alone.

Weights without biases get zeros for those that fairseq's model cannot do without.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from experiments.engines.engine import Engine, Translator, multi_head_only
from experiments.records.checked import Device
from gqa_fairseq.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from fairseq.data import Dictionary


class Stock(Engine):
    """fairseq's Transformer as it is."""

    name = "stock"
    help = "fairseq's own Transformer and search (multi-head only)"

    def refusal(self, architecture: Architecture, device: Device, dtype: str) -> str | None:
        return multi_head_only(self.name, architecture)

    def model_class(self) -> Any:
        """The class of the model."""
        from fairseq.models.transformer import TransformerModelBase

        return TransformerModelBase

    def start(
        self,
        model: Any,
        dictionary: Dictionary,
        device: torch.device,
        dtype: torch.dtype,
        is_alone: bool,
    ) -> Translator:
        from fairseq.sequence_generator import SequenceGenerator

        from experiments.engines.fairseq_translator import FairseqTranslator

        own = stock_model(self.model_class(), model, dictionary).to(device=device, dtype=dtype)
        return FairseqTranslator(own, dictionary, SequenceGenerator, has_plugin_cache=False)


class StockBeams(Stock):
    """fairseq's Transformer with the hook that switches on its per-sentence cross-attention."""

    name = "stock+beams"
    help = (
        "the same with the per-sentence cross-attention that fairseq offers where a model\n"
        "                  defines `set_beam_size`, which of its models BART alone does"
    )

    def model_class(self) -> Any:
        base = (
            super().model_class()
        )  # fairseq is imported when an engine starts: mypy cannot know it

        class PerSentenceTransformer(base):  # type: ignore[misc, valid-type]
            def set_beam_size(self, beam: int) -> None:
                for layer in self.decoder.layers:
                    layer.encoder_attn.set_beam_size(beam)

        return PerSentenceTransformer


def stock_model(kind: Any, model: Any, dictionary: Dictionary) -> Any:
    """A model of `kind`, which is fairseq's Transformer, with the weights of the plugin's."""
    from types import SimpleNamespace

    import torch

    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    stock = kind.build_model(copy.deepcopy(model.cfg), task)
    state = model.state_dict()
    for name, parameter in stock.state_dict().items():
        if name.endswith(".bias") and name not in state:
            state[name] = torch.zeros_like(parameter)
    stock.load_state_dict(state, strict=True)
    return stock


STOCK = Stock()
STOCK_BEAMS = StockBeams()
