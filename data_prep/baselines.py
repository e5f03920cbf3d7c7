"""What a translation system must beat: hypotheses for the test lines that no model made.

`copy` is the source line itself. `nearest` is the translation of the training line whose source is
nearest: the largest cosine of TF-IDF vectors over lower-cased words of any length, one-letter words
included; the first such line wins a tie.
"""

from pathlib import Path

import numpy
from sklearn.feature_extraction.text import TfidfVectorizer

from data_prep.manifest import TARGET_LANG
from data_prep.progress import Advance
from data_prep.text import Pair, open_for_writing

BATCH_LINES = 64
NAMES = ("copy", "nearest")


def write_baselines(
    train: list[Pair], test_sources: list[str], folder: Path, advance: Advance
) -> None:
    """Write `<name>.test.de` for each of NAMES into `folder`, one hypothesis a test line."""
    hypotheses = {"copy": test_sources, "nearest": nearest(train, test_sources, advance)}
    for name in NAMES:
        with open_for_writing(folder / f"{name}.test.{TARGET_LANG}") as stream:
            stream.writelines(f"{line}\n" for line in hypotheses[name])


def nearest(train: list[Pair], sources: list[str], advance: Advance) -> list[str]:
    """For each line of `sources`, the target side of the training pair with the nearest source."""
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    train_vectors = vectorizer.fit_transform([source for source, _ in train]).T.tocsr()
    found: list[str] = []
    for start in range(0, len(sources), BATCH_LINES):
        batch = sources[start : start + BATCH_LINES]
        cosines = (vectorizer.transform(batch) @ train_vectors).toarray()
        found += [train[index][1] for index in numpy.argmax(cosines, axis=1)]
        advance(len(batch))
    return found
