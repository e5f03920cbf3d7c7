"""What decoding, encoding and training move and compute, and what training keeps: whole numbers.

Shazeer 2019 (sections 2.4 and 3.1) argues by orders of magnitude; here every term of this plugin's
decoder is counted, for one step with t positions of B sentences with W beams each (legend: see
attention.py and architecture.py; F is the decoder's d_ff, V the vocabulary, L the decoder's layers,
S the padded source; elements, not bytes):

    matrices     L * (C (D_q + 2 D_kv) + 3 C D_q + 2 C F) + V C             each once a step
    weights      the matrices, and the norms L * 6 C, with pre-norm 2 C more, and biases if any
    self_kv      L * 2 B W D_kv * t    read, of which this step's B W were written: + L * 2 B W D_kv
                                       (with a window, its positions in place of t where t is more)
    source_kv    L * 2 B D_kv * S      read once a sentence, whatever the beam
    logits       2 * B W V             written and read
    embeddings   B W C

and before the first step, once a batch, its keys and values of the source: the encoder's output
B S C and the weights L * 2 C D_kv are read, L * 2 B S D_kv are written.

An element of a matrix takes `weight_bytes`, every other element `element_bytes`. They differ for
linear layers in 8 bits (decoding/int8.py): all matrices above are in 8 bits there, the output layer
and the projections of the source included; embeddings, norms, biases, cache and scores are not.

Not counted, because it stays in a processor's caches or is small: the hidden activations, the
scores of attention, the mask of ancestry, the scales of 8-bit weights, what the search itself
keeps. So these are lower bounds: time may be compared with them, never the other way round. There
is one exception: with a beam (W > 1) self_kv counts all slots, and where beams have come to share
their history the native operators and the GPU's kernel leave out those that no beam descends from.

Encoding and training pass over whole sequences, so hidden activations are too many for a
processor's caches. Each product [rows, in] x [in, out] reads its input and writes its output, and
each attention reads queries, keys and values and writes its sums, once each; adding the residual
reads C more for each row. In the encoder's L' layers, for N = B S rows (F' is the encoder's d_ff;
widths as above, of the encoder's heads):

    weights      L' * (2 C D_q + 2 C D_kv + 2 C F'), and norms (L' * 4 C, pre-norm 2 C more), biases
    activations  L' * N * (4 C + 2 D_q + 2 D_kv + 2 F' + 2 C) and, of attention, L' * N * (2 D_q +
                 2 D_kv)
    embeddings   2 N C                          read in the table, written as activations

Training adds the decoder's layers over B T rows, cross-attention over the source's B S rows (each
layer reads the encoder's output), the output layer, and backward:

    activations  a product moves 3 inputs and 2 outputs (forward: input read, output written;
                 backward: input and output's gradient read, input's gradient written), an attention
                 3 times what it moves forward, a residual 2 times
    weights      3 times: read forward and backward, gradient written
    logits       4 B T V: written, read for the loss, gradient written and read
    embeddings   4 (B S + B T) C
    optimizer    Adam's reads and writes of every parameter: gradient, and weight and two moments in
                 float32; with 16 bits the weights are written in them as well

Operations: 2 for each row and element of a matrix, 4 D_q for each pair of a query and a key that it
may see; backward has twice as many. Norms, ReLU and dropout are taken to happen while a product
reads or writes, and scores to stay on the chip, as in fused attention: backward needs them anew,
which is not counted.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import NamedTuple

from gqa_fairseq.architecture import Architecture, Heads

# Bytes of training a parameter. fp32: weight, gradient and Adam's two moments. 16 bits: fairseq
# keeps weight and gradient twice, in 16 bits to compute and in fp32 for the optimizer.
BYTES_PER_PARAMETER = {"fp32": 4 * 4, "bf16": 2 * 2 + 4 * 4, "fp16": 2 * 2 + 4 * 4}
FLOAT32_BYTES = 4
# What backward needs of one token, roughly: so many activations of d_model a layer, of d_ff (before
# and after the ReLU), and of the vocabulary (scores and their gradient as they are computed, and
# log-probabilities in fp32). Attention weights are left out: at lines of 30 tokens they are small.
ENCODER_D_MODELS, DECODER_D_MODELS, D_FFS = 10, 16, 2


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


def step_matrix_elements(architecture: Architecture) -> int:
    """Elements of all matrices that one decoding step multiplies its rows by."""
    C, heads = architecture.d_model, architecture.decoder_heads
    attentions = C * (heads.query_width + 2 * heads.kv_width) + 3 * C * heads.query_width
    ffn = 2 * C * architecture.decoder_d_ff
    return architecture.decoder_layers * (attentions + ffn) + architecture.vocab_size * C


def step_vector_elements(architecture: Architecture) -> int:
    """Elements of the norms and biases that one decoding step reads."""
    C, heads = architecture.d_model, architecture.decoder_heads
    norms, biases = 6 * C, 0
    if architecture.bias:
        self_attention = heads.query_width + 2 * heads.kv_width + C
        cross_attention = heads.query_width + C
        biases = self_attention + cross_attention + architecture.decoder_d_ff + C
    final_norm = 2 * C if architecture.pre_norm else 0
    return architecture.decoder_layers * (norms + biases) + final_norm


def source_matrix_elements(architecture: Architecture) -> int:
    """The projections of the source's keys and values, used once a batch; without biases."""
    kv_width = architecture.decoder_heads.kv_width
    return 2 * architecture.decoder_layers * kv_width * architecture.d_model


def source_vector_elements(architecture: Architecture) -> int:
    """The biases of the projections of the source's keys and values."""
    each = architecture.decoder_heads.kv_width if architecture.bias else 0
    return 2 * architecture.decoder_layers * each


def source_work(
    architecture: Architecture,
    *,
    batch: int,
    source_tokens: int,
    element_bytes: int,
    weight_bytes: int | None = None,
) -> Work:
    """Before the first step: the source's keys and values, from the encoder's output.

    `source_tokens` is S, padding included; for the others see `decoding_work`.
    """
    matrices, vectors = source_matrix_elements(architecture), source_vector_elements(architecture)
    written = _cached(architecture, batch, 1, source_tokens, 0, element_bytes)["cross"]
    read = batch * source_tokens * architecture.d_model * element_bytes
    weights = matrices * (weight_bytes or element_bytes) + vectors * element_bytes
    flops = 2 * batch * source_tokens * matrices
    return Work({"weights": weights, "source_kv": read + written}, flops)


def step_work(
    architecture: Architecture,
    *,
    batch: int,
    beam: int,
    source_tokens: int,
    length: int,
    element_bytes: int,
    weight_bytes: int | None = None,
) -> Work:
    """One step that makes `length` positions in all, of `batch` sentences still unfinished."""
    parts = step_parts(
        architecture,
        batch=batch,
        beam=beam,
        source_tokens=source_tokens,
        length=length,
        element_bytes=element_bytes,
        weight_bytes=weight_bytes,
    )
    return reduce(add, parts.values())


def step_parts(
    architecture: Architecture,
    *,
    batch: int,
    beam: int,
    source_tokens: int,
    length: int,
    element_bytes: int,
    weight_bytes: int | None = None,
) -> dict[str, Work]:
    """What `step_work` adds up: the layers' matrices, both attentions, the output layer."""
    rows, C, V = batch * beam, architecture.d_model, architecture.vocab_size
    output, vectors = V * C, step_vector_elements(architecture)
    layers = step_matrix_elements(architecture) - output
    positions = positions_kept(length, architecture.window)
    cached = _cached(architecture, batch, beam, source_tokens, positions, element_bytes)
    new = _cached(architecture, batch, beam, 0, 1, element_bytes)["self"]
    matrix_bytes = weight_bytes or element_bytes
    # A beam's scores cover the slots of all beams of its sentence; the mask then hides the others.
    slot = 4 * rows * architecture.decoder_layers * architecture.decoder_heads.query_width
    return {
        "layers": Work(
            {
                "weights": layers * matrix_bytes + vectors * element_bytes,
                "embeddings": rows * C * element_bytes,
            },
            2 * rows * layers,
        ),
        "self_attention": Work({"self_kv": cached["self"] + new}, slot * beam * positions),
        "cross_attention": Work({"source_kv": cached["cross"]}, slot * source_tokens),
        "output": Work(
            {"weights": output * matrix_bytes, "logits": 2 * rows * V * element_bytes},
            2 * rows * output,
        ),
    }


def decoding_work(
    architecture: Architecture,
    *,
    beam: int,
    source_tokens: int,
    steps: Sequence[int],
    element_bytes: int,
    weight_bytes: int | None = None,
) -> Work:
    """One batch from the encoder's output to the end.

    Args:
        beam: hypotheses a sentence.
        source_tokens: S, padding included.
        steps: for each sentence, the steps until it leaves the batch: the tokens of its longest
            hypothesis, end of sentence included.
        element_bytes: bytes of an element of the cache, scores, embeddings, norms and biases.
        weight_bytes: bytes of an element of a matrix, 1 for layers in 8 bits; unset: the same.
    """
    work = source_work(
        architecture,
        batch=len(steps),
        source_tokens=source_tokens,
        element_bytes=element_bytes,
        weight_bytes=weight_bytes,
    )
    for length in range(1, max(steps) + 1):
        work += step_work(
            architecture,
            batch=sum(count >= length for count in steps),
            beam=beam,
            source_tokens=source_tokens,
            length=length,
            element_bytes=element_bytes,
            weight_bytes=weight_bytes,
        )
    return work


class _Product(NamedTuple):
    """[rows, inputs] x [inputs, outputs]."""

    rows: int
    inputs: int
    outputs: int

    @property
    def forward_elements(self) -> int:
        return self.rows * (self.inputs + self.outputs)

    @property
    def training_elements(self) -> int:
        return self.rows * (3 * self.inputs + 2 * self.outputs)

    @property
    def forward_flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs


class _Attention(NamedTuple):
    """`queries` rows over `keys` rows; `pairs` of them see each other."""

    queries: int
    keys: int
    pairs: int
    heads: Heads

    @property
    def forward_elements(self) -> int:
        return 2 * (self.queries * self.heads.query_width + self.keys * self.heads.kv_width)

    @property
    def forward_flops(self) -> int:
        return 4 * self.pairs * self.heads.query_width


class _Pass(NamedTuple):
    """One layer over whole sequences; `residuals` are elements that an addition reads."""

    products: list[_Product]
    attentions: list[_Attention]
    residuals: int


def _encoder_layer(architecture: Architecture, batch: int, source_tokens: int) -> _Pass:
    rows, C, heads = batch * source_tokens, architecture.d_model, architecture.encoder_heads
    products = [*_own_products(rows, C, heads), *_ffn_products(rows, C, architecture.encoder_d_ff)]
    attention = _Attention(rows, rows, rows * source_tokens, heads)
    return _Pass(products, [attention], 2 * rows * C)


def _decoder_layer(
    architecture: Architecture, batch: int, source_tokens: int, target_tokens: int
) -> _Pass:
    """With all target positions at once, as in training."""
    rows, C, heads = batch * target_tokens, architecture.d_model, architecture.decoder_heads
    source_rows = batch * source_tokens
    products = [
        *_own_products(rows, C, heads),
        _Product(rows, C, heads.query_width),
        _Product(source_rows, C, 2 * heads.kv_width),
        _Product(rows, heads.query_width, C),
        *_ffn_products(rows, C, architecture.decoder_d_ff),
    ]
    reach = positions_kept(target_tokens, architecture.window)
    # Position t sees min(t, reach) positions: a triangle, and then as many each.
    seen = reach * (reach + 1) // 2 + (target_tokens - reach) * reach
    attentions = [
        _Attention(rows, rows, batch * seen, heads),
        _Attention(rows, source_rows, rows * source_tokens, heads),
    ]
    return _Pass(products, attentions, 3 * rows * C)


def _own_products(rows: int, C: int, heads: Heads) -> list[_Product]:
    """The projections of self-attention."""
    query_width = heads.query_width
    return [_Product(rows, C, query_width + 2 * heads.kv_width), _Product(rows, query_width, C)]


def _ffn_products(rows: int, C: int, d_ff: int) -> list[_Product]:
    return [_Product(rows, C, d_ff), _Product(rows, d_ff, C)]


def encoder_matrix_elements(architecture: Architecture) -> int:
    """Elements of all matrices of the encoder; each is used once a batch."""
    layer = _encoder_layer(architecture, 1, 1)
    return architecture.encoder_layers * sum(p.inputs * p.outputs for p in layer.products)


def encoder_vector_elements(architecture: Architecture) -> int:
    """Elements of the norms and biases of the encoder."""
    C, heads = architecture.d_model, architecture.encoder_heads
    biases = heads.query_width + 2 * heads.kv_width + C + architecture.encoder_d_ff + C
    final_norm = 2 * C if architecture.pre_norm else 0
    each = 4 * C + (biases if architecture.bias else 0)
    return architecture.encoder_layers * each + final_norm


def encoder_parts(
    architecture: Architecture,
    *,
    batch: int,
    source_tokens: int,
    element_bytes: int,
    weight_bytes: int | None = None,
) -> dict[str, Work]:
    """One batch through the encoder: what its matrices and its attention move and compute.

    `source_tokens` is S, padding included; for the others see `decoding_work`.
    """
    count = architecture.encoder_layers
    layer = _encoder_layer(architecture, batch, source_tokens)
    weights = encoder_matrix_elements(architecture) * (weight_bytes or element_bytes)
    weights += encoder_vector_elements(architecture) * element_bytes
    moved = sum(p.forward_elements for p in layer.products) + layer.residuals
    return {
        "layers": Work(
            {
                "weights": weights,
                "activations": count * moved * element_bytes,
                "embeddings": 2 * batch * source_tokens * architecture.d_model * element_bytes,
            },
            count * sum(p.forward_flops for p in layer.products),
        ),
        "self_attention": Work(
            {
                "activations": count
                * sum(a.forward_elements for a in layer.attentions)
                * element_bytes
            },
            count * sum(a.forward_flops for a in layer.attentions),
        ),
    }


def training_parts(
    architecture: Architecture,
    *,
    batch: int,
    source_tokens: int,
    target_tokens: int,
    element_bytes: int,
) -> dict[str, Work]:
    """One update on one batch: forward, backward and Adam.

    `source_tokens` and `target_tokens` are S and T, padding included; `element_bytes` are those of
    weights, activations and gradients: 4, or 2 with a copy of the weights in float32.
    """
    C, V = architecture.d_model, architecture.vocab_size
    rows = batch * target_tokens
    layers = [
        (architecture.encoder_layers, _encoder_layer(architecture, batch, source_tokens)),
        (
            architecture.decoder_layers,
            _decoder_layer(architecture, batch, source_tokens, target_tokens),
        ),
    ]
    output = _Product(rows, C, V)
    elements = (
        encoder_matrix_elements(architecture)
        + encoder_vector_elements(architecture)
        + source_matrix_elements(architecture)
        + source_vector_elements(architecture)
        + step_matrix_elements(architecture)
        + step_vector_elements(architecture)
        - V * C
    )
    moved = sum(
        n * (sum(p.training_elements for p in layer.products) + 2 * layer.residuals)
        for n, layer in layers
    )
    attended = sum(n * sum(3 * a.forward_elements for a in layer.attentions) for n, layer in layers)
    flops = sum(n * sum(3 * p.forward_flops for p in layer.products) for n, layer in layers)
    attention_flops = sum(
        n * sum(3 * a.forward_flops for a in layer.attentions) for n, layer in layers
    )
    copy = 0 if element_bytes == FLOAT32_BYTES else element_bytes
    adam = 2 * 3 * FLOAT32_BYTES + element_bytes + copy
    embedded = 4 * batch * (source_tokens + target_tokens) * C
    return {
        "layers": Work(
            {
                "weights": 3 * elements * element_bytes,
                "activations": moved * element_bytes,
                "embeddings": embedded * element_bytes,
            },
            flops,
        ),
        "attention": Work({"activations": attended * element_bytes}, attention_flops),
        "output": Work(
            {
                "weights": 3 * V * C * element_bytes,
                "activations": 3 * rows * C * element_bytes,
                "logits": 4 * rows * V * element_bytes,
            },
            3 * output.forward_flops,
        ),
        "optimizer": Work({"optimizer": architecture.parameters * adam}),
    }


def positions_kept(length: int, window: int | None) -> int:
    """Of `length` target positions, those whose keys and values the newest one reads."""
    return length if window is None else min(length, window)


def cache_bytes(
    *,
    batch: int,
    beam: int,
    source_tokens: int,
    target_tokens: int,
    layers: int,
    num_kv_heads: int,
    head_dim: int,
    bytes_per_element: int,
    window: int | None = None,
) -> dict[str, int]:
    """Bytes of K and V that decoding keeps, counted: `self` for every beam, `cross` a sentence.

    The number of query heads does not appear: that is the point (Shazeer 2019, section 3.1). With a
    `window` a target of any length takes no more than its positions.
    """
    per_position = 2 * layers * num_kv_heads * head_dim * bytes_per_element
    return {
        "self": batch * beam * positions_kept(target_tokens, window) * per_position,
        "cross": batch * source_tokens * per_position,
    }


def training_memory_bytes(
    architecture: Architecture, precision: str, tokens: int
) -> tuple[int, int]:
    """Estimates for one device: what the parameters take, and the activations of one batch.

    bytes a parameter * parameters, and tokens * (bytes an element * (encoder layers *
    (10 d_model + 2 d_ff) + decoder layers * (16 d_model + 2 d_ff)) + vocabulary * (scores)).

    Args:
        architecture: the whole model, vocabulary and positions included.
        precision: `fp32`, `bf16` or `fp16`.
        tokens: tokens of one batch, padding included.

    Raises:
        ValueError: the precision is another one.
    """
    if precision not in BYTES_PER_PARAMETER:
        choices = ", ".join(BYTES_PER_PARAMETER)
        raise ValueError(f"precision {precision!r} is unknown: choose one of {choices}")
    element = 4 if precision == "fp32" else 2
    encoder = ENCODER_D_MODELS * architecture.d_model + D_FFS * architecture.encoder_d_ff
    decoder = DECODER_D_MODELS * architecture.d_model + D_FFS * architecture.decoder_d_ff
    layers = architecture.encoder_layers * encoder + architecture.decoder_layers * decoder
    scores = architecture.vocab_size * (2 * element + 2 * 4)
    state = architecture.parameters * BYTES_PER_PARAMETER[precision]
    return state, tokens * (element * layers + scores)


def _cached(
    architecture: Architecture,
    batch: int,
    beam: int,
    source_tokens: int,
    target_tokens: int,
    element_bytes: int,
) -> dict[str, int]:
    return cache_bytes(
        batch=batch,
        beam=beam,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        layers=architecture.decoder_layers,
        num_kv_heads=architecture.decoder_heads.num_kv_heads,
        head_dim=architecture.decoder_heads.head_dim,
        bytes_per_element=element_bytes,
    )
