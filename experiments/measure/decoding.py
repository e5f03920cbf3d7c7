"""Contenders that decode: an engine with an architecture's weights, trained or random."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import torch
from fairseq.data import Dictionary

from experiments.engines import find_engine
from experiments.engines.engine import Engine, Inputs, Translator
from experiments.errors import ExperimentError
from experiments.measure.loop import Best, Competitor
from experiments.measure.request import RequestedContender, with_positions
from experiments.measure.workloads import Text, fixed_inputs
from experiments.records.measurement import Contender, FixedLengths, RealText
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.checkpoints.load import load_model
from gqa_fairseq.costs import Work, cache_bytes, decoding_work
from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel, architecture_of

Weights = Literal["random", "trained"]
SEED = 0  # of random weights: all contenders of one architecture have the same


class Decoder:
    """One contender through many workloads; its model is built anew only where it must differ.

    `is_alone`: no other contender works in this process, and its memory is what is measured.
    """

    def __init__(
        self,
        asked: RequestedContender,
        device: torch.device,
        dtype: torch.dtype,
        is_alone: bool,
    ) -> None:
        self.asked, self.device, self.dtype = asked, device, dtype
        self.is_alone = is_alone
        self.engine = find_engine(asked.engine)
        self._built: tuple[Weights, int] | None = None
        self._translator: Translator | None = None
        self._dictionary: Dictionary | None = None

    def take(
        self, workload: FixedLengths | RealText, weights: Weights, text: Text | None
    ) -> Translating:
        """Ready for a workload.

        Raises:
            ExperimentError: the checkpoint cannot be read or has another architecture.
        """
        own = self.asked.architecture
        if weights == "trained" or not isinstance(workload, FixedLengths):
            positions = own.max_target_positions
        else:
            positions = workload.max_positions
        if self._built != (weights, positions):
            self.close()
            model, self._dictionary = self._model(weights, positions)
            self._translator = self.engine.start(
                model, self._dictionary, self.device, self.dtype, self.is_alone
            )
            self._built = weights, positions
        translator, dictionary = self._translator, self._dictionary
        assert translator is not None
        assert dictionary is not None
        if isinstance(workload, FixedLengths):
            inputs = fixed_inputs(workload, dictionary)
        else:
            assert text is not None
            inputs = text.inputs(workload.beam, positions)
        translator.load(inputs)
        if isinstance(workload, FixedLengths) and not self.is_alone:
            # In the first run, which is warm-up: who keeps a cache frees its memory later.
            translator.watch_cache()
        contender = Contender(
            architecture=own,
            engine=self.engine.name,
            weights=weights,
            jobs=tuple(self.asked.jobs),
        )
        return Translating(contender, self.engine, translator, inputs, self.dtype)

    def close(self) -> None:
        """End what it started; its memory goes."""
        if self._translator is not None:
            self._translator.close()
        self._translator = self._built = None

    def _model(self, weights: Weights, positions: int) -> tuple[Any, Dictionary]:
        own = self.asked.architecture
        if weights == "random":
            return random_model(with_positions(own, positions))
        assert self.asked.checkpoint is not None
        assert self.asked.data is not None
        try:
            model, task = load_model(self.asked.checkpoint, self.asked.data)
        except (OSError, ValueError) as error:
            raise ExperimentError(str(error)) from error
        check_architecture(model, own, self.asked.checkpoint)
        return model, task.target_dictionary


def random_model(architecture: Architecture) -> tuple[GroupedQueryTransformerModel, Dictionary]:
    """A model with random weights and a dictionary of made-up pieces, always the same."""
    dictionary = Dictionary()
    for index in range(architecture.vocab_size - dictionary.nspecial):
        dictionary.add_symbol(f"piece{index}")
    torch.manual_seed(SEED)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    config = GroupedQueryTransformerConfig(**architecture.fairseq_options())
    model = GroupedQueryTransformerModel.build_model(config, task)
    check_architecture(model, architecture, "the built model")
    return model, dictionary


def check_architecture(model: Any, architecture: Architecture, origin: str) -> None:
    """Raise ExperimentError unless the model has that architecture."""
    try:
        built = architecture_of(model, architecture.name, architecture.residual)
    except ValueError as error:
        raise ExperimentError(f"{origin}: {error}") from error
    if built != architecture:
        differences = [
            f"{field} is {getattr(built, field)}, not {getattr(architecture, field)}"
            for field in architecture.__dataclass_fields__
            if getattr(built, field) != getattr(architecture, field)
        ]
        raise ExperimentError(f"{origin}: not {architecture.name}: {'; '.join(differences)}")


class Translating(Competitor):
    """A translator at its inputs."""

    def __init__(
        self,
        contender: Contender,
        engine: Engine,
        translator: Translator,
        inputs: Inputs,
        dtype: torch.dtype,
    ) -> None:
        self.contender, self.engine, self.inputs = contender, engine, inputs
        self.translator = translator
        self.element_bytes = dtype.itemsize
        self._found: list[list[Any]] = []

    def run(self) -> None:
        self._found = self.translator.translate()
        self.encoder_s = self.translator.encoder_s

    def tokens(self) -> int:
        self._check_cache()
        return sum(map(len, self.best()))

    def best(self) -> Best:
        return [sentence[0] for sentence in self.translator.hypotheses(self._found)]

    def is_comparable(self) -> bool:
        return self.inputs.target_tokens is None or self.engine.ends_as_forced

    def work(self) -> Work:
        """What this plugin's decoder moves and computes for these hypotheses.

        A sentence leaves its batch with its longest hypothesis.
        """
        found = self.translator.hypotheses(self._found)
        steps = [max(map(len, sentence)) for sentence in found]
        total, first = Work(), 0
        for batch in self.inputs.batches:
            sentences, source_tokens = batch["src_tokens"].shape
            total += decoding_work(
                self.contender.architecture,
                beam=self.inputs.search["beam_size"],
                source_tokens=source_tokens,
                steps=steps[first : first + sentences],
                element_bytes=self.element_bytes,
                weight_bytes=self.engine.weight_bytes,
            )
            first += sentences
        # The machine's rate is that of products in `dtype`: it says nothing of those in 8 bits.
        return Work(total.bytes_by_part) if self.engine.weight_bytes else total

    def _check_cache(self) -> None:
        """Raise ExperimentError unless the cache held as many bytes as the formula says."""
        held = self.translator.held_cache_bytes()
        if held is None:
            return
        (batch,) = self.inputs.batches
        sentences, source_tokens = batch["src_tokens"].shape
        architecture = self.contender.architecture
        predicted = cache_bytes(
            batch=sentences,
            beam=self.inputs.search["beam_size"],
            source_tokens=source_tokens,
            target_tokens=self.inputs.target_tokens or 0,
            window=architecture.window,
            layers=architecture.decoder_layers,
            num_kv_heads=architecture.num_kv_heads,
            head_dim=architecture.decoder_heads.head_dim,
            bytes_per_element=self.element_bytes,
        )
        if held != predicted:
            raise ExperimentError(
                f"{self.contender.name}: the KV cache holds {held} bytes, predicted were "
                f"{predicted}"
            )
        self.kv_cache_bytes = sum(predicted.values())
