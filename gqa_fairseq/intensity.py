"""The papers' argument: memory over arithmetic of one attention layer, and the exact counts.

Shazeer 2019 (sections 2.3, 2.4 and 3.1) compares orders of magnitude, with n positions of b
sentences, width d, h heads of k = d / h, and, for the grouped case, G key/value heads:

                                arithmetic   memory                     memory / arithmetic
    training, multi-head        b n d^2      b n d + b h n^2 + d^2      1/k + 1/(b n)
    incremental, multi-head     b n d^2      b n^2 d + n d^2            n/d + 1/b
    incremental, multi-query    b n d^2      b n d + b n^2 k + n d^2    1/d + n/(d h) + 1/b
    incremental, grouped        b n d^2      b n d + b n^2 k G + n d^2  1/d + n G/(d h) + 1/b

A ratio below about 0.01 keeps an accelerator busy. All of it assumes n <= d and leaves out
constants and attention's own b n^2 d operations. `Counts` leaves out nothing of the same layer.
Where n passes d, attention's operations grow as its keys and values do, so the exact ratio stops at
G/h while the formula goes on growing.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gqa_fairseq.architecture import check_kv_heads, head_dim_of

BUSY_RATIO = 0.01  # the rule of thumb


@dataclass(frozen=True)
class Layer:
    """One self-attention layer in the papers' notation: b, n, d, h, and G key/value heads.

    Raises:
        ValueError: a number is below 1, h does not divide d, or G does not divide h.
    """

    b: int
    n: int
    d: int
    h: int
    G: int

    def __post_init__(self) -> None:
        if min(self.b, self.n) < 1:
            raise ValueError("batch and length must be at least 1")
        head_dim_of(self.d, self.h)
        check_kv_heads(self.h, self.G)

    @property
    def k(self) -> int:
        return self.d // self.h

    @property
    def kv(self) -> int:
        """The width of all key heads."""
        return self.G * self.k

    @property
    def matrices(self) -> int:
        """Elements of the projections of queries, keys, values and the output."""
        return 2 * self.d**2 + 2 * self.d * self.kv


@dataclass(frozen=True)
class Counts:
    """Elements accessed, by what they are, and multiplications (each with its addition)."""

    weights: int
    keys_and_values: int
    activations: int
    scores: int
    projections: int
    attention: int

    @property
    def elements(self) -> int:
        return self.weights + self.keys_and_values + self.activations + self.scores

    @property
    def ratio(self) -> Fraction:
        """Elements an operation."""
        return Fraction(self.elements, self.projections + self.attention)

    @property
    def ratio_of_projections(self) -> Fraction:
        """As the papers count: without attention's own operations."""
        return Fraction(self.elements, self.projections)


def training_counts(layer: Layer) -> Counts:
    """All positions at once, forward: every tensor of section 2.3 is accessed once.

    Those are the input X, which queries, keys and values are made of, Q, K, V, O and Y; logits and
    weights, h n^2 each; and the four projections.
    """
    rows = layer.b * layer.n
    return Counts(
        weights=layer.matrices,
        keys_and_values=2 * rows * layer.kv,
        activations=4 * rows * layer.d,
        scores=2 * layer.b * layer.h * layer.n**2,
        projections=rows * layer.matrices,
        attention=2 * rows * layer.n * layer.d,
    )


def incremental_counts(layer: Layer) -> Counts:
    """n steps, of which step t writes one position and reads t, its own included (section 2.4).

    Scores are those of one position, and stay on the chip. x, q, o and y are accessed.
    """
    rows = layer.b * layer.n
    seen = layer.b * layer.n * (layer.n + 1) // 2
    return Counts(
        weights=layer.n * layer.matrices,
        keys_and_values=2 * layer.kv * (seen + rows),
        activations=4 * rows * layer.d,
        scores=0,
        projections=rows * layer.matrices,
        attention=2 * seen * layer.d,
    )


def training_ratio(layer: Layer) -> float:
    """1/k + 1/(b n)."""
    return 1 / layer.k + 1 / (layer.b * layer.n)


def incremental_ratio(layer: Layer) -> float:
    """n G/(d h) + 1/b; with fewer key/value heads than heads 1/d more, which n/d covers else."""
    rest = 0 if layer.h == layer.G else 1 / layer.d
    return rest + layer.n * layer.G / (layer.d * layer.h) + 1 / layer.b
