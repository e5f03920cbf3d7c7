"""Attention weights that are computed when somebody looks at them.

fairseq returns them always. Most callers never look, and without them attention is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

from torch import Tensor


class OnDemand(list):
    """[weights], as a decoder returns them in `extra["attn"]`."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        super().__init__([None])
        self._compute: Callable[[], Tensor] | None = compute

    def _look(self) -> None:
        if self._compute is not None:
            self[0], self._compute = self._compute(), None

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        self._look()
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Tensor]:
        self._look()
        return super().__iter__()


class Hypothesis(dict):
    """A hypothesis as fairseq's search returns it; `attention` [S, T] is computed when wanted.

    Copies and pickles are plain dictionaries, with the weights.
    """

    def __init__(self, entries: dict[str, Any], attention: Callable[[], Tensor]) -> None:
        super().__init__(entries)
        self._compute: Callable[[], Tensor] | None = attention

    def _look(self) -> None:
        if self._compute is not None:
            self["attention"], self._compute = self._compute(), None

    def __getitem__(self, key: str) -> Any:
        if key == "attention":
            self._look()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key == "attention":
            self._look()
        return super().get(key, default)

    def values(self) -> Any:
        self._look()
        return super().values()

    def items(self) -> Any:
        self._look()
        return super().items()

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # so that `dict(self)` asks __getitem__ for the values

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)
