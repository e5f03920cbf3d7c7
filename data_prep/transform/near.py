"""Which lines are nearly one of a few given lines."""

from collections.abc import Iterable


class NearLines:
    """Lines, as `same_text_key` writes them, that others are compared with.

    Two lines are near where half or more of the different words that they have together are in
    both (their Jaccard index is at least 1/2). Counts are whole, so that nothing is rounded. Each
    line takes a byte for each different word: this is for held-out lines of small corpora.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        import numpy  # takes longer to import than most corpora, which do without, take to open

        words_of = [set(line.split()) for line in sorted(lines)]
        self._rows = {word: row for row, word in enumerate(sorted(set().union(*words_of)))}
        self._has = numpy.zeros((len(self._rows), len(words_of)), dtype=numpy.uint8)
        for column, words in enumerate(words_of):
            self._has[[self._rows[word] for word in words], column] = 1
        self._sizes = self._has.sum(axis=0, dtype=numpy.int64)

    def has_one_near(self, line: str) -> bool:
        """Whether `line`, as `same_text_key` writes it, is near one of them."""
        words = set(line.split())
        rows = [self._rows[word] for word in words if word in self._rows]
        shared = self._has[rows].sum(axis=0, dtype=self._sizes.dtype)
        return bool((2 * shared >= self._sizes + len(words) - shared).any())
