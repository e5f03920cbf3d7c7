"""What an engine is: a name, a line of help, what it cannot do, and how it is started.

Nothing here imports torch, so that help and refusals come at once. An engine's file imports what it
needs in `start`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.records.checked import Device
from gqa_fairseq.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from fairseq.data import Dictionary


@dataclass(frozen=True)
class Inputs:
    """Batches of sources and the limits of the search.

    `batches` are fairseq's `net_input`: src_tokens [B, S] padded on the left, src_lengths [B].
    `search` are arguments of SequenceGenerator. Every sentence is decoded to `target_tokens`, end
    of sentence included; None: the search decides. The model has `max_positions` target positions.
    """

    batches: list[dict[str, torch.Tensor]]
    search: dict[str, Any]
    target_tokens: int | None
    max_positions: int


class Translator(ABC):
    """An engine at work with one model; what it found is read when the clock has stopped."""

    encoder_s: float | None = None  # seconds of the last run; None: not told apart

    @abstractmethod
    def load(self, inputs: Inputs) -> None:
        """Take what is to be translated from now on."""

    @abstractmethod
    def translate(self) -> list[list[Any]]:
        """Hypotheses of every sentence, batch by batch, in the engine's own form."""

    @abstractmethod
    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        """Each sentence's hypotheses in that order, best first: tokens with the end of sentence."""

    def watch_cache(self) -> None:  # noqa: B027  most have nothing to do
        """Let the next run, and no later one, keep its cache until `held_cache_bytes` reads it."""

    def held_cache_bytes(self) -> dict[str, int] | None:
        """Bytes of K and V at the end of the watched run, `self` and `cross`; None: not known."""
        return None

    def close(self) -> None:  # noqa: B027  most have started none
        """End the processes that it started."""


class Engine(ABC):
    """One way to decode.

    `is_exact`: it finds what fairseq finds, and is used where no engine is named.
    `ends_as_forced`: a forced length is ended as fairseq ends it, so hypotheses can be compared.
    `weight_bytes`: bytes of an element of a matrix of weights, where it is not that of the rest.
    """

    name: str
    help: str
    is_exact = True
    ends_as_forced = True
    weight_bytes: int | None = None

    def refusal(self, architecture: Architecture, device: Device, dtype: str) -> str | None:
        """Why this engine cannot decode with this architecture there, in words; None if it can.

        `dtype` is a name such as `float32`.
        """
        return None

    def sees_memory(self, device: Device) -> bool:
        """Whether its memory on the device can be counted."""
        return True

    @abstractmethod
    def start(
        self,
        model: Any,
        dictionary: Dictionary,
        device: torch.device,
        dtype: torch.dtype,
        is_alone: bool,
    ) -> Translator:
        """A translator with the weights of `model`, a model of the plugin that it may change.

        `is_alone`: no other engine works in this process.
        """


def multi_head_only(engine: str, architecture: Architecture) -> str | None:
    """The refusal of an engine that knows fairseq's multi-head attention, and no other."""
    what, name = architecture.unlike_fairseq, architecture.name
    return what and f"{engine} is multi-head only, and the decoder of {name} has {what}"
