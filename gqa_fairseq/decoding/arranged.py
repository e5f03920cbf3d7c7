"""A decoder's weights arranged for decoding, and what searches keep as long as those are valid."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from gqa_fairseq.decoding.static_search import StaticSearch
from gqa_fairseq.decoding.step import DecoderStep

# Untyped, as fairseq's classes are: nn.Module's own types would forbid what the decoder does.
_Module: Any = nn.Module


class ArrangedWeights(_Module):
    """The part of the decoder that owns its DecoderStep."""

    is_int8 = False  # set by decoding/int8.py
    is_native = True  # use the native operators where there are any
    _arranged: DecoderStep
    _searches: WeakKeyDictionary[Any, StaticSearch]
    _arranged_state: tuple | None = None

    def arranged(self) -> DecoderStep:
        """The weights fused and packed for decoding: anew unless they are the last search's."""
        state = (
            self.is_int8,
            self.is_native,
            [(p.data_ptr(), p._version, p.dtype) for p in self.parameters()],
        )
        if self._arranged_state != state:
            self._forget()
            self._arranged_state, self._arranged = state, DecoderStep(self)
            self._searches = WeakKeyDictionary()
        return self._arranged

    def searches(self) -> WeakKeyDictionary[Any, StaticSearch]:
        """What each generator keeps between batches; it ends with the arranged weights."""
        self.arranged()
        return self._searches

    def _forget(self) -> None:
        if self._arranged_state is not None:
            self._searches.clear()  # they point back here: their memory is not to wait for that
            del self._arranged, self._arranged_state, self._searches

    def train(self, mode: bool = True) -> ArrangedWeights:
        """Arranged weights end with evaluation: optimizers write through `.data`, uncounted."""
        if mode:
            self._forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the arranged weights behind; packed ones cannot be copied."""
        state = super().__getstate__()
        private = ("_arranged", "_arranged_state", "_searches")
        return {k: v for k, v in state.items() if k not in private}
