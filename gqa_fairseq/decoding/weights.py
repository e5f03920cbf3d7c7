"""A decoder's weights as decoding steps multiply by them, and when they are made anew."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet

from fairseq.modules import FairseqDropout
from torch import nn

from gqa_fairseq.attention import GroupedQueryAttention
from gqa_fairseq.decoding.int8 import NEEDS_FUSED
from gqa_fairseq.decoding.module_step import ModuleStep
from gqa_fairseq.decoding.step import DecoderStep
from gqa_fairseq.finite import require_finite

# Untyped, as fairseq's classes are: nn.Module's own types would forbid what the decoder does.
_Module: Any = nn.Module


class WeightsUser(Protocol):
    """What keeps memory that is of use with one DecoderStep alone, such as graphs of it."""

    def release(self) -> None: ...


class DecodingWeights(_Module):
    """The part of the decoder that owns what its steps run on."""

    is_int8 = False  # set by decoding/int8.py
    is_native = True  # use the native operators where there are any
    is_fused = True  # False: steps run the layers' own modules, whose forward hooks fire
    _decoding_weights: DecoderStep | ModuleStep
    _decoding_state: tuple | None = None  # of the parameters that the step was made from
    _weights_users: WeakSet[WeightsUser]

    @property
    def runs_modules(self) -> bool:
        """Whether steps run the layers' own modules: as asked for, or because dropout is kept."""
        return not self.is_fused or keeps_dropout(self.layers)

    def decoding_weights(self, user: WeightsUser | None = None) -> DecoderStep | ModuleStep:
        """The weights fused and packed for decoding: the last ones if the parameters are the same.

        Where `runs_modules` they are the modules themselves.

        Args:
            user: its `release` is called when these weights end; it is not kept alive.

        Raises:
            ValueError: a weight is infinite or no number, or modules run and have 8 bits.
        """
        runs_modules = self.runs_modules
        if runs_modules and self.is_int8:
            raise ValueError(NEEDS_FUSED)
        state = (
            self.is_int8,
            self.is_native,
            runs_modules,
            [(p.data_ptr(), p._version, p.dtype) for p in self.parameters()],
        )
        if self._decoding_state != state:
            self._forget()
            require_finite(self.named_parameters(), "decoder.")
            self._decoding_weights = ModuleStep(self) if runs_modules else DecoderStep(self)
            self._decoding_state = state
            self._weights_users = WeakSet()
        if user is not None:
            self._weights_users.add(user)
        return self._decoding_weights

    def _forget(self) -> None:
        if self._decoding_state is not None:
            for user in list(self._weights_users):
                user.release()
            del self._decoding_weights, self._decoding_state, self._weights_users

    def train(self, mode: bool = True) -> DecodingWeights:
        """Decoding weights end with evaluation: optimizers write through `.data`, uncounted."""
        if mode:
            self._forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the decoding weights behind; packed ones cannot be copied."""
        state = super().__getstate__()
        private = ("_decoding_weights", "_decoding_state", "_weights_users")
        return {k: v for k, v in state.items() if k not in private}


def keeps_dropout(module: nn.Module) -> bool:
    """Whether something in a module is dropped outside training as well (--retain-dropout)."""
    return any(
        part.apply_during_inference and part.p > 0
        if isinstance(part, FairseqDropout)
        else isinstance(part, GroupedQueryAttention)
        and part.is_dropout_retained
        and part.dropout > 0
        for part in module.modules()
    )
