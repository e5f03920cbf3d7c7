"""What an update is made of: real target tokens, the same on all hardware, within memory."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fairseq.data import LanguagePairDataset, data_utils
from fairseq.data.iterators import GroupedIterator
from fairseq.tasks.translation import TranslationTask
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from plugin_models import dictionary

from data_prep.corpora.sample_en_de import Sample
from experiments.config import SuiteConfig
from experiments.run import resolve
from gqa_fairseq.batching import TargetTokenBatches, cut
from gqa_fairseq.tasks.gqa_translation import GroupedQueryTranslationTask

CONF = Path(__file__).resolve().parents[2] / "conf"
PRESETS = {p.stem: p for p in sorted((CONF / "hardware").glob("*.yaml")) if p.stem != "base"}


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths, in the order that fairseq's dataset gives."""
    pairs = st.tuples(st.integers(1, 60), st.integers(1, 60))
    rows = sorted(draw(st.lists(pairs, min_size=1, max_size=300)))
    source, target = np.array(rows).T
    return source, target


@given(text=texts(), count=st.integers(1, 40), max_tokens=st.integers(60, 2000) | st.none())
def test_batches_hold_every_line_once_and_fit(
    text: tuple[np.ndarray, np.ndarray], count: int, max_tokens: int | None
) -> None:
    source, target = text
    longer_side = np.maximum(source, target)
    refused = None
    try:
        batches = cut(target, longer_side, count, max_tokens)
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert f"of at most {max_tokens} padded" in refused
        max_tokens = int(refused.split("(to ")[1].split(",")[0])  # what it says is enough
        batches = cut(target, longer_side, count, max_tokens)
    assert np.concatenate(batches).tolist() == list(range(len(target)))
    assert all(len(batch) for batch in batches)
    assert len(batches) <= count
    for batch in batches:
        padded = len(batch) * max(source[batch].max(), target[batch].max())
        assert max_tokens is None or padded <= max_tokens


@given(text=texts(), count=st.integers(1, 40))
def test_without_a_limit_batches_have_the_same_tokens_up_to_a_line(
    text: tuple[np.ndarray, np.ndarray], count: int
) -> None:
    source, target = text
    wanted = target.sum() / count
    if wanted < target.max():
        return  # a single line may be more than a batch should be
    batches = cut(target, np.maximum(source, target), count)
    assert len(batches) == count
    assert all(abs(target[batch].sum() - wanted) <= target.max() for batch in batches)


def test_a_batch_too_large_for_memory_is_smaller_and_the_mean_stays() -> None:
    # 400 lines of 10, and 8 whose lengths are far apart.
    target = np.array([10] * 400 + [20, 40, 60, 80, 100, 120, 140, 200])
    batches = cut(target, target, 10, max_tokens=800)
    tokens = [int(target[batch].sum()) for batch in batches]
    assert len(batches) == 10
    assert np.mean(tokens) == target.sum() / 10
    assert all(len(batch) * target[batch].max() <= 800 for batch in batches)
    # As it would be without a limit:
    assert max(len(batch) * target[batch].max() for batch in cut(target, target, 10)) > 800


class CountedPairs(LanguagePairDataset):
    """Lines that are nothing but their length; a batch is its number of target tokens."""

    def __init__(self, source_sizes: list[int], target_sizes: list[int]) -> None:
        words = dictionary()
        super().__init__(source_sizes, source_sizes, words, target_sizes, target_sizes, words)

    def __getitem__(self, index: int) -> int:
        return int(self.tgt_sizes[index])

    def collater(self, samples: list[int]) -> int:
        return sum(samples)


@pytest.fixture(scope="module")
def lengths() -> tuple[list[int], list[int]]:
    """Words of both sides of the embedded sample, and the end of the sentence."""
    pairs = [(len(a.split()), len(b.split())) for a, b in Sample().pairs("train", Path())]
    kept = [pair for pair in pairs if max(pair) <= 1.5 * min(pair)]
    return [a + 1 for a, _ in kept], [b + 1 for _, b in kept]


def composed(hardware: str, tokens: int) -> SuiteConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"hardware={hardware}", f"train.tokens_per_update={tokens}", "model=paper"]
        return resolve(compose("suite", overrides=overrides))


def tokens_of_updates(config: SuiteConfig, lengths: tuple[list[int], list[int]]) -> list[int]:
    """Target tokens of each update of the second epoch, over all devices, as in fairseq's train."""
    devices = config.hardware.devices
    pairs = CountedPairs(*lengths)
    task_config = SimpleNamespace(train_subset="train")
    task = GroupedQueryTranslationTask(task_config, pairs.src_dict, pairs.tgt_dict)
    task.datasets["train"] = TargetTokenBatches(
        pairs, config.train.tokens_per_update, devices * config.update_freq, seed=1
    )
    shards = []
    for rank in range(devices):
        task.dataset_to_epoch_iter.clear()
        batches = task.get_batch_iterator(
            task.datasets["train"],
            max_tokens=config.hardware.max_tokens_per_device,
            max_positions=(256, 256),
            ignore_invalid_inputs=True,
            required_batch_size_multiple=8,
            num_shards=devices,
            shard_id=rank,
            epoch=2,
        )
        updates = GroupedIterator(batches.next_epoch_itr(), config.update_freq)
        shards.append([sum(update) for update in updates])
    return [sum(of_all) for of_all in zip(*shards, strict=True)]


@pytest.mark.parametrize(("tokens", "repeat"), [(4096, 1), (32_768, 6)])
def test_an_update_has_the_same_target_tokens_on_all_hardware(
    lengths: tuple[list[int], list[int]], tokens: int, repeat: int
) -> None:
    repeated = (lengths[0] * repeat, lengths[1] * repeat)
    means = {}
    for name in PRESETS:
        found = tokens_of_updates(composed(name, tokens), repeated)
        assert len(found) >= 50
        assert sum(found) == sum(repeated[1])  # every line, once
        means[name] = float(np.mean(found))
        first = np.mean(list(islice(found, 50)))
        assert first == pytest.approx(tokens, rel=0.05)
    assert max(means.values()) == pytest.approx(min(means.values()), rel=0.02)
    assert means == pytest.approx(dict.fromkeys(means, tokens), rel=0.05)


def test_batches_do_not_depend_on_the_epoch_in_which_a_process_starts(
    lengths: tuple[list[int], list[int]],
) -> None:
    def order(seed: int, epoch: int) -> np.ndarray:
        with data_utils.numpy_seed(7, epoch):  # as fairseq does for the epoch
            return TargetTokenBatches(CountedPairs(*lengths), 4096, 1, seed).ordered_indices()

    assert np.array_equal(order(1, epoch=1), order(1, epoch=2))
    assert not np.array_equal(order(1, epoch=1), order(2, epoch=1))


def batches_of(lines: int, split: str, **training: object) -> list[list[int]]:
    """The lines of each batch of a text of that size, with fairseq's default multiple of 8."""
    pairs = CountedPairs([5] * lines, [5] * lines)
    task = GroupedQueryTranslationTask(
        SimpleNamespace(train_subset="train"), pairs.src_dict, pairs.tgt_dict
    )
    task.datasets[split] = pairs
    batches = task.get_batch_iterator(
        pairs,
        max_tokens=100,
        max_positions=(256, 256),
        required_batch_size_multiple=8,
        **training,
    )
    return [list(map(int, batch)) for batch in batches.frozen_batches]


@pytest.mark.parametrize("lines", [*range(1, 18), 31, 377])
def test_no_line_is_dropped_outside_training_whatever_the_text_is_called(lines: int) -> None:
    batches = batches_of(lines, "train")
    assert sorted(line for batch in batches for line in batch) == list(range(lines))
    assert batches == batches_of(lines, "valid")


@pytest.mark.parametrize("lines", [5, 11, 377])
def test_the_batches_of_training_are_fairseqs(lines: int) -> None:
    pairs = CountedPairs([5] * lines, [5] * lines)
    task = TranslationTask(SimpleNamespace(), pairs.src_dict, pairs.tgt_dict)
    stock = task.get_batch_iterator(
        pairs, max_tokens=100, max_positions=(256, 256), required_batch_size_multiple=8
    )
    expected = [list(map(int, batch)) for batch in stock.frozen_batches]
    assert batches_of(lines, "train", update_epoch_batch_itr=False) == expected


def test_validation_on_the_training_text_leaves_trainings_batches_alone() -> None:
    pairs = CountedPairs([5] * 11, [5] * 11)
    task = GroupedQueryTranslationTask(
        SimpleNamespace(train_subset="train"), pairs.src_dict, pairs.tgt_dict
    )
    task.datasets["train"] = pairs
    limits = {"max_tokens": 100, "max_positions": (256, 256), "required_batch_size_multiple": 8}
    training = task.get_batch_iterator(pairs, **limits, update_epoch_batch_itr=False)
    validation = task.get_batch_iterator(pairs, **limits)
    assert sum(map(len, validation.frozen_batches)) == 11
    assert task.get_batch_iterator(pairs, **limits, update_epoch_batch_itr=False) is training
