"""What a translation system must beat: hypotheses for the test lines that no model made.

`copy` is the source line itself. `nearest` is the translation of the training line whose source is
nearest: the largest cosine of TF-IDF vectors over lower-cased words of any length, one-letter words
included; the first such line wins a tie, and the first of all where no word is known.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.system.parallel import chunks
from data_prep.text import Pair, open_for_writing

BATCH_LINES = 64  # of test
CHUNK_PAIRS = 10_000  # of train: their vectors are in memory at the same time
MAX_WORDS = 2_000_000  # different ones, whose counts are in memory: some hundred megabytes
NAMES = ("copy", "nearest")

# Streams the training pairs, anew at each call.
Train = Callable[[], Iterable[Pair]]


def write_baselines(
    train: Train | None,
    test_sources: list[str],
    target_lang: str,
    folder: Path,
    say: Callable[[str], None] = print,
) -> None:
    """Write `NAME.test.LANGUAGE` for each of NAMES into `folder`, one hypothesis a test line.

    Without `train`, `nearest` is left out; also where it fails, which `say` is told: nothing else
    depends on it.
    """
    hypotheses = {"copy": test_sources}
    if train is not None:
        try:
            hypotheses["nearest"] = nearest(train, test_sources)
        except Exception as error:
            say(f"the nearest-line baseline is left out: {str(error) or type(error).__name__}")
    for name in hypotheses:
        with open_for_writing(folder / f"{name}.test.{target_lang}") as stream:
            stream.writelines(f"{line}\n" for line in hypotheses[name])


def nearest(train: Train, sources: list[str]) -> list[str]:
    """For each line of `sources`, the target side of the training pair with the nearest source.

    Train is read twice and never held: memory grows with its different words alone. Raises
    ValueError when it has more than MAX_WORDS of them.
    """
    # They take longer to import than all else, and not every corpus wants them.
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer

    pattern = r"(?u)\b\w+\b"
    words_of = TfidfVectorizer(token_pattern=pattern).build_analyzer()
    lines, lines_with = 0, Counter[str]()
    for source, _ in train():
        lines += 1
        lines_with.update(set(words_of(source)))
        if len(lines_with) > MAX_WORDS:
            raise ValueError(f"the training text has more than {MAX_WORDS:,} different words")
    best = numpy.full(len(sources), -1.0)
    found = [""] * len(sources)
    words = sorted(lines_with) or ["no word"]  # such as text of emoji: all vectors are zero
    vectorizer = TfidfVectorizer(token_pattern=pattern, vocabulary=words)
    counts = numpy.array([lines_with[word] for word in words], dtype=numpy.float64)
    vectorizer.idf_ = numpy.log((1 + lines) / (1 + counts)) + 1
    batches = [
        (start, vectorizer.transform(sources[start : start + BATCH_LINES]))
        for start in range(0, len(sources), BATCH_LINES)
    ]
    for pairs in chunks(train(), CHUNK_PAIRS):
        vectors = vectorizer.transform([source for source, _ in pairs]).T.tocsr()
        for start, batch in batches:
            cosines = (batch @ vectors).toarray()
            for line, index in enumerate(numpy.argmax(cosines, axis=1), start=start):
                cosine = cosines[line - start, index]
                if cosine > best[line]:
                    best[line], found[line] = cosine, pairs[index][1]
    return found
