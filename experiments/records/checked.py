"""What every struct of a record has in common: strict fields, finite numbers, one `check`."""

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Rate = Annotated[float, Meta(gt=0)]
Rates = Annotated[list[Rate], Meta(min_length=1)]
RawSeconds = Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=1)]

Device = Literal["cpu", "cuda"]
MemoryKind = Literal["process_rss", "cuda_allocated"]


class ContradictionError(ValueError):
    """Fields of a result contradict each other, or a number is none; one line says which."""


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every float is finite, and `check` finds no contradiction, when built and when read."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ContradictionError(f"{name} is {number}, not a finite number")
        self.check()

    def check(self) -> None:
        """Raise ContradictionError, a ValueError, when fields contradict each other."""


def require(holds: bool, problem: str) -> None:
    """Raise ContradictionError with `problem` unless it holds."""
    if not holds:
        raise ContradictionError(problem)


def require_close(field: str, part: Checked, expected: float) -> None:
    """Raise ContradictionError unless a field is, up to rounding, what the others give."""
    value = getattr(part, field)
    require(
        math.isclose(value, expected, rel_tol=1e-6),
        f"{field} is {value:g}, but the other fields give {expected:g}",
    )


def median_us_per_token(raw_s: Sequence[float], tokens: int) -> float:
    """Median of the raw seconds of a run that gives `tokens`, in microseconds per token."""
    return 1e6 * statistics.median(raw_s) / tokens
