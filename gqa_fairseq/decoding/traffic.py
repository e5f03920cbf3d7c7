"""What decoding has to move and to compute, counted in whole bytes and operations.

Shazeer 2019 (sections 2.4 and 3.1) argues by orders of magnitude; here every term of this plugin's
decoder is counted, for one step with t positions of B sentences with W beams each (legend: see
attention.py; F is d_ff, V the vocabulary, L the layers, S the padded source; elements, not bytes):

    weights      L * (C * (C + 2 G D) + 3 C C + 2 C F + 6 C) + V C + 2 C    each once a step
                 (without biases; the 2 C of the last norm with pre-norm alone)
    self_kv      L * 2 B W G D * t     read, of which this step's B W were written: + L * 2 B W G D
    source_kv    L * 2 B G D * S       read once a sentence, whatever the beam
    logits       2 * B W V             written and read
    embeddings   B W C

and before the first step, once a batch, its keys and values of the source: the encoder's output
B S C and the weights L * 2 C G D are read, L * 2 B S G D are written.

Not counted, because it stays in a processor's caches or is small: the hidden activations, the
scores of attention, the mask of ancestry, what the search itself keeps. So these are lower bounds,
and time may be compared with them, never the other way round. With one exception: with a beam
(W > 1) self_kv counts all slots, and where beams have come to share their history the native
operators and the GPU's kernel leave out those that no beam descends from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gqa_fairseq.attention import cache_bytes


@dataclass(frozen=True)
class DecoderShape:
    """The decoder of one model; `bytes_per_element` is that of weights, cache and scores."""

    d_model: int
    num_heads: int
    num_kv_heads: int
    d_ff: int
    layers: int
    vocab_size: int
    has_bias: bool
    is_pre_norm: bool
    bytes_per_element: int

    @classmethod
    def of(cls, decoder: Any, bytes_per_element: int) -> DecoderShape:
        """The shape of a built decoder of this plugin."""
        layer = decoder.layers[0]
        return cls(
            d_model=layer.embed_dim,
            num_heads=layer.self_attn.num_heads,
            num_kv_heads=layer.self_attn.num_kv_heads,
            d_ff=layer.fc1.out_features,
            layers=len(decoder.layers),
            vocab_size=decoder.output_projection.out_features,
            has_bias=layer.fc1.bias is not None,
            is_pre_norm=decoder.layer_norm is not None,
            bytes_per_element=bytes_per_element,
        )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def step_matrix_elements(self) -> int:
        """Elements of all matrices that one step multiplies its rows by."""
        C = self.d_model
        attention = C * (C + 2 * self.kv_width) + 3 * C * C
        return self.layers * (attention + 2 * C * self.d_ff) + self.vocab_size * C

    @property
    def step_weight_elements(self) -> int:
        """All weights that one step reads: the matrices, biases and norms."""
        C = self.d_model
        biases = C + 2 * self.kv_width + 3 * C + self.d_ff + C if self.has_bias else 0
        final_norm = 2 * C if self.is_pre_norm else 0
        return self.step_matrix_elements + self.layers * (6 * C + biases) + final_norm

    @property
    def source_weight_elements(self) -> int:
        """The projections of the source's keys and values, used once a batch."""
        return 2 * self.layers * self.kv_width * (self.d_model + self.has_bias)


@dataclass(frozen=True)
class Work:
    """Bytes by what they are for, and operations (a multiplication and an addition are two)."""

    bytes_by_part: dict[str, int] = field(default_factory=dict)
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        parts = {
            part: self.bytes_by_part.get(part, 0) + other.bytes_by_part.get(part, 0)
            for part in self.bytes_by_part | other.bytes_by_part
        }
        return Work(parts, self.flops + other.flops)

    @property
    def bytes_moved(self) -> int:
        return sum(self.bytes_by_part.values())


def source_work(shape: DecoderShape, *, batch: int, source_tokens: int) -> Work:
    """Before the first step: the source's keys and values, from the encoder's output."""
    element = shape.bytes_per_element
    written = _cached(shape, batch, 1, source_tokens, 0)["cross"]
    read = batch * source_tokens * shape.d_model * element
    flops = 4 * batch * source_tokens * shape.layers * shape.d_model * shape.kv_width
    weights = shape.source_weight_elements * element
    return Work({"weights": weights, "source_kv": read + written}, flops)


def step_work(
    shape: DecoderShape, *, batch: int, beam: int, source_tokens: int, length: int
) -> Work:
    """One step that makes `length` positions in all, of `batch` sentences still unfinished."""
    element, rows = shape.bytes_per_element, batch * beam
    cached = _cached(shape, batch, beam, source_tokens, length)
    new = _cached(shape, batch, beam, 0, 1)["self"]
    parts = {
        "weights": shape.step_weight_elements * element,
        "self_kv": cached["self"] + new,
        "source_kv": cached["cross"],
        "logits": 2 * rows * shape.vocab_size * element,
        "embeddings": rows * shape.d_model * element,
    }
    # A beam's scores cover the slots of all beams of its sentence; the mask then hides the others.
    slots = beam * length + source_tokens
    attention = 4 * rows * shape.layers * shape.d_model * slots
    return Work(parts, 2 * rows * shape.step_matrix_elements + attention)


def decoding_work(
    shape: DecoderShape, *, beam: int, source_tokens: int, steps: Sequence[int]
) -> Work:
    """One batch from the encoder's output to the end.

    Args:
        beam: hypotheses a sentence.
        source_tokens: S, padding included.
        steps: for each sentence, the steps until it leaves the batch: the tokens of its longest
            hypothesis, end of sentence included.
    """
    work = source_work(shape, batch=len(steps), source_tokens=source_tokens)
    for length in range(1, max(steps) + 1):
        left = sum(count >= length for count in steps)
        work += step_work(shape, batch=left, beam=beam, source_tokens=source_tokens, length=length)
    return work


def _cached(
    shape: DecoderShape, batch: int, beam: int, source_tokens: int, target_tokens: int
) -> dict[str, int]:
    return cache_bytes(
        batch=batch,
        beam=beam,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        layers=shape.layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        bytes_per_element=shape.bytes_per_element,
    )
