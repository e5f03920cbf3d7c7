"""A mirror like WMT14's, small, made of the embedded sample or of real newstest."""

import os
from itertools import islice
from pathlib import Path

from data_prep.bench.synthetic import write_mirror
from data_prep.corpora.sample_en_de import Sample
from data_prep.spec import DataSpec
from data_prep.text import Pair, read_pairs

ARCHIVES = ("europarl-v7", "commoncrawl", "news-commentary-v9")
EACH = 150


def small_mirror(folder: Path, vocab_size: int = 500) -> DataSpec:
    """Three archives of `EACH` pairs of the sample and a few bad ones, tiny test sets."""
    pairs = list(islice(Sample().pairs("train", Path()), 3 * EACH))
    train = {name: pairs[start * EACH :][:EACH] for start, name in enumerate(ARCHIVES)}
    train["commoncrawl"] += [("", "leer"), ("bell \x07", "Glocke"), ("one", "eins " * 40)]
    test = list(islice(Sample().pairs("test", Path()), 30))
    train["commoncrawl"].append((test[0][0].upper(), "Vom Test."))
    dev = list(islice(Sample().pairs("dev", Path()), 20))
    filtered = [pair for number, pair in enumerate(test) if number % 7]
    table = write_mirror(folder, train, dev, test, filtered)
    return DataSpec(
        name="wmt14_en_de", vocab_size=vocab_size, sources=str(table), mirror=str(folder)
    )


def real_mirror(folder: Path, pairs_each: int) -> DataSpec | None:
    """Real newstest, and training text of debian-l10n; None without CORPORA_DIR."""
    corpora = os.environ.get("CORPORA_DIR")
    if not corpora:
        return None
    news, debian = Path(corpora) / "newstest", Path(corpora) / "debian-l10n"
    stream = read_pairs(debian / "train.en.xz", debian / "train.de.xz")
    train = {name: list(islice(stream, pairs_each)) for name in ARCHIVES}
    dev, test = (newstest(news, year) for year in (2013, 2014))
    table = write_mirror(folder, train, dev, test, test[:2737])
    return DataSpec(name="wmt14_en_de", vocab_size=2000, sources=str(table), mirror=str(folder))


def newstest(folder: Path, year: int) -> list[Pair]:
    """The pairs of a newstest in plain text."""
    return list(read_pairs(*(folder / f"newstest{year}.{lang}" for lang in ("en", "de"))))
