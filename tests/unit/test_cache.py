"""The shared cache against a private one for every hypothesis: what each beam may read, bit by bit.

The naive cache copies a hypothesis's keys and values whenever a beam continues it, as beam search
is usually written. The real one never moves them, so any mistake in ancestry, growth or removal
shows as a wrong tensor here.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gqa_fairseq.costs import cache_bytes
from gqa_fairseq.decoding.cpu.cache import DecoderCache

torch.set_num_threads(1)
LAYERS = 2
D = 3
F64 = torch.float64

searches = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 5),
        "beam": st.integers(1, 4),
        "kv_heads": st.integers(1, 3),
        "source": st.integers(1, 4),
        "steps": st.integers(1, 9),
        "capacity": st.integers(1, 4),
        "window": st.sampled_from([None, 1, 2, 3, 32]),
        "is_padded": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)

# A hypothesis's own cache: for each layer the (key, value) pairs [G, D] of all its steps.
Private = list[list[tuple[Tensor, Tensor]]]


class NaiveCache:
    """One private history a hypothesis, copied at every reordering."""

    def __init__(self, batch: int, beam: int) -> None:
        self.beam = beam
        self.rows: list[Private] = [[[] for _ in range(LAYERS)] for _ in range(batch * beam)]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: [rows, G, D]."""
        for row, k, v in zip(self.rows, keys, values, strict=True):
            row[layer].append((k, v))

    def reorder(self, rows: Tensor) -> None:
        self.rows = [[list(layer) for layer in self.rows[i]] for i in rows.tolist()]


def random_cross(shape: dict) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    size = (shape["batch"], shape["kv_heads"], shape["source"], D)
    layers = [(torch.randn(size, dtype=F64), torch.randn(size, dtype=F64)) for _ in range(LAYERS)]
    if not shape["is_padded"]:
        return layers, None
    is_padding = torch.rand(shape["batch"], shape["source"]) < 0.5
    is_padding[:, -1] = False
    return layers, is_padding


def take_step(cache: DecoderCache, naive: NaiveCache, kv_heads: int) -> None:
    """Random keys and values go into both; every hypothesis must find exactly its own history."""
    W = cache.beam
    cache.start_step(F64, torch.device("cpu"))
    for layer in range(LAYERS):
        new_keys, new_values = torch.randn(2, cache.batch, W, kv_heads, D, dtype=F64)
        read = steps_read(cache)
        naive.append(layer, new_keys.flatten(0, 1), new_values.flatten(0, 1))
        keys, values, mask = cache.append(
            layer, cache.to_cache_order(new_keys), cache.to_cache_order(new_values)
        )
        assert keys.shape == values.shape == (cache.batch, kv_heads, len(read) * W, D)
        if mask is None:
            assert W == 1
            mask = torch.zeros(cache.batch, W, len(read) * W, dtype=F64)
        assert bool(((mask == 0) | (mask == -torch.inf)).all())
        keys, values, mask = (cache.to_sentence_order(x) for x in (keys, values, mask))
        for row, private in enumerate(naive.rows):
            sentence, beam = divmod(row, W)
            is_own = mask[sentence, beam] == 0
            for found, part in ((keys, 0), (values, 1)):
                expected = torch.stack([private[layer][t][part] for t in read], dim=1)
                assert torch.equal(found[sentence][:, is_own], expected)


def steps_read(cache: DecoderCache) -> list[int]:
    """The steps that the newest one reads, in the order of their slots."""
    steps, window = range(cache.length), cache.window
    return [*steps] if window is None else sorted(steps[-window:], key=lambda t: t % window)


def survivors(batch: int) -> Tensor:
    """A random, ordered, non-empty choice of sentences; all of them half of the time."""
    if torch.rand(()) < 0.5:
        return torch.arange(batch)
    is_kept = torch.rand(batch) < 0.7
    is_kept[torch.randint(batch, ())] = True
    return is_kept.nonzero().squeeze(1)


def new_cache(shape: dict) -> DecoderCache:
    sizes = (shape[name] for name in ("batch", "beam", "capacity"))
    return DecoderCache(*sizes, window=shape["window"])


@settings(deadline=None, max_examples=80)
@given(searches)
def test_each_hypothesis_reads_its_own_history(shape: dict) -> None:
    """fairseq's order of events: step, then one reordering of rows that may drop sentences."""
    torch.manual_seed(shape["seed"])
    B, W, G = shape["batch"], shape["beam"], shape["kv_heads"]
    cache, naive = new_cache(shape), NaiveCache(B, W)
    cross, is_padding = random_cross(shape)
    cache.store_source(cross, is_padding, F64)
    alive = torch.arange(B)
    for _ in range(shape["steps"]):
        take_step(cache, naive, G)
        check_source(cache, cross, is_padding, alive)
        assert cache.nbytes == cache_bytes(
            batch=len(alive),
            beam=W,
            source_tokens=shape["source"],
            target_tokens=len(steps_read(cache)),
            layers=LAYERS,
            num_kv_heads=G,
            head_dim=D,
            bytes_per_element=8,
        )
        kept = survivors(len(alive))
        parents = torch.randint(W, (len(kept), W))
        rows = (kept[:, None] * W + parents).flatten()
        cache.reorder(rows)
        naive.reorder(rows)
        alive = alive[kept]


@settings(deadline=None, max_examples=40)
@given(searches)
def test_sentences_may_leave_in_any_order(shape: dict) -> None:
    """The plugin's own search: sentences are kept first, their beams reordered then."""
    torch.manual_seed(shape["seed"])
    B, W, G = shape["batch"], shape["beam"], shape["kv_heads"]
    cache, naive = new_cache(shape), NaiveCache(B, W)
    cross, is_padding = random_cross(shape)
    cache.store_source(cross, is_padding, F64)
    alive = torch.arange(B)
    for _ in range(shape["steps"]):
        take_step(cache, naive, G)
        kept = survivors(len(alive))
        kept = kept[torch.randperm(len(kept))]
        parents = torch.randint(W, (len(kept), W))
        cache.keep_sentences(kept)
        cache.reorder_beams(parents)
        naive.reorder((kept[:, None] * W + parents).flatten())
        alive = alive[kept]
        check_source(cache, cross, is_padding, alive)


def check_source(
    cache: DecoderCache,
    cross: list[tuple[Tensor, Tensor]],
    is_padding: Tensor | None,
    alive: Tensor,
) -> None:
    """One row a sentence, whatever the beam, and it is that sentence's."""
    for layer, pair in enumerate(cross):
        keys, values, mask = cache.source(layer)
        for found, expected in zip((keys, values), pair, strict=True):
            assert torch.equal(cache.to_sentence_order(found), expected[alive])
        if is_padding is None or not bool(is_padding.any()):
            assert mask is None
        else:
            assert mask is not None
            assert torch.equal(cache.to_sentence_order(mask)[:, 0] != 0, is_padding[alive])


@given(st.integers(1, 20), st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_a_known_length_is_allocated_once(steps: int, beam: int) -> None:
    cache = DecoderCache(2, beam)
    cache.reserve(steps)
    homes = set()
    for _ in range(steps):
        cache.start_step(F64, torch.device("cpu"))
        keys, _, _ = cache.append(0, *torch.randn(2, 2, beam, 1, D, dtype=F64))
        homes.add(keys.data_ptr())
    assert len(homes) == 1


@pytest.mark.parametrize("is_reserved", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("window", [1, 3, 40])
def test_no_more_than_the_window_is_ever_taken(window: int, beam: int, is_reserved: bool) -> None:
    """All memory that steps take, whether a length is known beforehand or not."""
    B, G = 2, 2
    cache = DecoderCache(B, beam, window=window)
    cross = torch.randn(B, G, 5, D)
    cache.store_source([(cross, cross)] * LAYERS, None, torch.float32)
    if is_reserved:
        cache.reserve(10**6)
    taken = []
    for _ in range(3 * window + 2):
        cache.start_step(torch.float32, torch.device("cpu"))
        for layer in range(LAYERS):
            cache.append(layer, *torch.randn(2, B, beam, G, D))
        tensors = [t for pair in cache._self for t in pair]
        tensors += [] if cache._mask is None else [cache._mask]
        taken.append(sum(t.untyped_storage().nbytes() for t in tensors))
    slots, mask_rows = B * window * beam, beam if beam > 1 else 0
    assert max(taken) == taken[-1] == 4 * slots * (LAYERS * 2 * G * D + mask_rows)
    assert cache.nbytes["self"] == 4 * slots * LAYERS * 2 * G * D


def test_bytes_depend_on_kv_heads_alone() -> None:
    """Eight query heads or one: the cache has no place for them. G = 1 stores an eighth of 8."""
    sizes = {}
    for g in (1, 2, 4, 8):
        cache = DecoderCache(3, 2)
        cross = torch.randn(3, g, 5, D)
        cache.store_source([(cross, cross)], None, torch.float32)
        for _ in range(4):
            cache.start_step(torch.float32, torch.device("cpu"))
            cache.append(0, *torch.randn(2, 3, 2, g, D))
        sizes[g] = cache.nbytes
    assert sizes[1] == {"self": 2 * 3 * 2 * 4 * D * 4, "cross": 2 * 3 * 5 * D * 4}
    assert all(sizes[g] == {k: g * v for k, v in sizes[1].items()} for g in sizes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 2], "3 rows are not a multiple of the beam width 2"),
        ([0, 2, 2, 3], "must continue beams of one sentence"),
        ([0, 1, 1, 0], "cannot be continued twice"),
    ],
)
def test_orders_that_no_beam_search_makes(rows: list[int], message: str) -> None:
    cache = DecoderCache(2, 2)
    cache.start_step(F64, torch.device("cpu"))
    cache.append(0, *torch.randn(2, 2, 2, 1, D, dtype=F64))
    with pytest.raises(ValueError, match=message):
        cache.reorder(torch.tensor(rows))
