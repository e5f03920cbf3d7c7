"""The benchmark of WMT14's preparation: a mirror of the real layout, and the table it prints."""

import re
import tarfile

import pytest

from data_prep.bench import __main__ as bench
from data_prep.bench import synthetic
from data_prep.corpora.sources import read_sources
from data_prep.system.progress import Timing
from data_prep.text import read_lines

PAIRS = 1_000


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    assert synthetic.main([str(folder), "--pairs", str(PAIRS)]) == 0
    return folder


def test_the_mirror_has_real_proportions_and_distinct_pairs(mirror, tmp_path):
    archives = read_sources(mirror / synthetic.TABLE_NAME).archives
    train = [archive for archive in archives if archive.role == "train"]
    assert [archive.pairs for archive in train] == [424, 531, 45]
    assert [archive.pairs for archive in archives[3:]] == [3000, 3003, 2737]
    pairs = []
    for archive in train:
        with tarfile.open(mirror / archive.download.name) as stream:
            names = stream.getnames()
            others = len(synthetic.OTHER_LANGUAGES[archive.name])
            assert len(set(names)) == len(names) == 2 * others + 2
            assert names[-2:] == list(archive.members)
            stream.extractall(tmp_path, filter="data")
        source, target = (list(read_lines(tmp_path / member)) for member in archive.members)
        assert len(source) == archive.pairs
        pairs += zip(source, target, strict=True)
    # The one that each archive repeats from dev is the same in all.
    assert len(set(pairs)) == PAIRS - 2


@pytest.mark.long
def test_the_table(mirror, tmp_path, capfd):
    options = ["--folder", str(tmp_path), "--vocab-size", "500", "--workers", "1"]
    assert bench.main([str(mirror), *options]) == 0
    printed = capfd.readouterr().out
    for step in bench.STEPS:
        assert re.search(rf"^{step} +[0-9.]+ +[0-9,]+ +[0-9,]+ +[0-9.]+$", printed, re.MULTILINE)
    read, kept, dropped = re.search(r"pairs +(\S+) read = (\S+) kept \+ (.*)", printed).groups()
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", dropped)}
    assert int(read.replace(",", "")) == PAIRS == int(kept) + sum(counts.values())
    # One of each in each archive.
    assert {name: counts[name] for name in ("empty", "control_characters", "held_out")} == {
        "empty": 3, "control_characters": 3, "held_out": 3
    }  # fmt: skip
    assert counts["too_long"] >= 3
    memory = re.search(r"memory +([0-9.]+) GB", printed)
    assert float(memory[1]) > 0.05  # Python and fairseq take more than that
    assert not list(tmp_path.iterdir())


def test_fixed_costs_are_told_apart_by_two_sizes():
    """10 s at 20,000 pairs and 6 s at 4,000: 5 s and 250 us a pair, and no noise extrapolated."""
    large, small = Timing(wall_s=10.0, pairs=20_000), Timing(wall_s=6.0, pairs=4_000)
    assert bench.extrapolated(large, small, 4_000_000) == pytest.approx((5.0, 1005.0))
    assert bench.extrapolated(large, Timing(wall_s=9.5, pairs=4_000), 4_000_000) is None
    assert bench.extrapolated(large, Timing(wall_s=2.0, pairs=20_000), 4_000_000) is None
    # A step that grows faster than its pairs has no fixed part below nothing.
    assert bench.extrapolated(large, Timing(wall_s=1.0, pairs=4_000), 40_000)[0] == 0.0


def test_a_failure_is_the_commands(tmp_path, capfd):
    assert bench.main([str(tmp_path / "nowhere"), "--folder", str(tmp_path)]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ")
    assert not captured.out
