"""What a translation system must beat: hypotheses for the test lines that no model made.

`copy` is the source line itself. `nearest` is the translation of the training line whose source is
nearest: the largest cosine of TF-IDF vectors over lower-cased words of any length, one-letter words
included; the first such line wins a tie.
"""

from pathlib import Path

from data_prep.text import Pair, open_for_writing

BATCH_LINES = 64
NAMES = ("copy", "nearest")


def write_baselines(
    train: list[Pair] | None, test_sources: list[str], target_lang: str, folder: Path
) -> None:
    """Write `NAME.test.LANGUAGE` for each of NAMES into `folder`, one hypothesis a test line.

    Without `train`, `nearest` is left out.
    """
    hypotheses = {"copy": test_sources}
    if train is not None:
        hypotheses["nearest"] = nearest(train, test_sources)
    for name in hypotheses:
        with open_for_writing(folder / f"{name}.test.{target_lang}") as stream:
            stream.writelines(f"{line}\n" for line in hypotheses[name])


def nearest(train: list[Pair], sources: list[str]) -> list[str]:
    """For each line of `sources`, the target side of the training pair with the nearest source."""
    # They take longer to import than all else, and not every corpus wants them.
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    train_vectors = vectorizer.fit_transform([source for source, _ in train]).T.tocsr()
    found: list[str] = []
    for start in range(0, len(sources), BATCH_LINES):
        batch = sources[start : start + BATCH_LINES]
        cosines = (vectorizer.transform(batch) @ train_vectors).toarray()
        found += [train[index][1] for index in numpy.argmax(cosines, axis=1)]
    return found
