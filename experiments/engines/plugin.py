"""The plugin's model: with its own search, with fairseq's, with PyTorch's operators, in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.engines.engine import Engine, Translator
from experiments.errors import ExperimentError
from experiments.records.checked import Device
from gqa_fairseq.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from fairseq.data import Dictionary


class PluginEngine(Engine):
    """The plugin's model under the plugin's search."""

    name = "gqa"
    help = "the plugin's model and search"

    def search(self) -> Any:
        """The class of the generator."""
        from gqa_fairseq.decoding.search import GroupedQueryGenerator

        return GroupedQueryGenerator

    def change(self, model: Any) -> None:
        """What is done to the model before it decodes."""

    def start(
        self,
        model: Any,
        dictionary: Dictionary,
        device: torch.device,
        dtype: torch.dtype,
        is_alone: bool,
    ) -> Translator:
        from experiments.engines.fairseq_translator import FairseqTranslator

        model = model.to(device=device, dtype=dtype)
        self.change(model)
        return FairseqTranslator(model, dictionary, self.search(), has_plugin_cache=True)


class StockSearch(PluginEngine):
    """The plugin's model under fairseq's search."""

    name = "gqa+stock"
    help = "the plugin's model (cache and step) under fairseq's search"

    def search(self) -> Any:
        from fairseq.sequence_generator import SequenceGenerator

        return SequenceGenerator


class TorchOperators(PluginEngine):
    """The plugin's model and search without the plugin's own operators for a CPU."""

    name = "gqa+torch"
    help = "as gqa, with PyTorch's operators in place of the plugin's own for the CPU"

    def change(self, model: Any) -> None:
        model.decoder.is_native = False


class Int8(PluginEngine):
    """The plugin's model and search with linear layers in 8 bits."""

    name = "gqa+int8"
    help = "as gqa, with linear layers in 8 bits (on a CPU in float32); not used unless named"
    is_exact = False
    weight_bytes = 1

    def refusal(self, architecture: Architecture, device: Device, dtype: str) -> str | None:
        if (device, dtype) == ("cpu", "float32"):
            return None
        return f"{self.name} needs float32 weights on a CPU, and this is {dtype} on {device}"

    def change(self, model: Any) -> None:
        from gqa_fairseq.decoding.int8 import quantize_int8

        try:
            quantize_int8(model)
        except ValueError as error:
            raise ExperimentError(f"{self.name}: {error}") from error


GQA = PluginEngine()
STOCK_SEARCH = StockSearch()
TORCH = TorchOperators()
INT8 = Int8()
