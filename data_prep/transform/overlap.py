"""How much of the held-out text the training text already holds.

Words are those of `same_text_key`: lower case, no punctuation, every number the same. A line's
4-grams are its runs of four words; a line of fewer words has none. Only the held-out 4-grams are
kept in memory, so that training text of any size streams by.
"""

from collections.abc import Iterable, Iterator, Mapping

from data_prep.spec import Overlap
from data_prep.text import same_text_key

FourGram = tuple[str, ...]


def measure_overlap(train: Iterable[str], held_out: Mapping[str, list[str]]) -> dict[str, Overlap]:
    """The overlap of each split of `held_out`, all lines of the source language, with `train`.

    - `four_grams_seen_share`: of the split's 4-grams, each counted as often as it occurs
    - `lines_covered_share`: lines that have 4-grams, all of them in train; of all lines
    - `duplicate_lines`: lines that say the same as a line of train
    """
    keys = {split: [same_text_key(line) for line in lines] for split, lines in held_out.items()}
    wanted_lines = {key for split in keys.values() for key in split}
    wanted = {gram for key in wanted_lines for gram in _four_grams(key)}
    seen: set[FourGram] = set()
    seen_lines: set[str] = set()
    for line in train:
        key = same_text_key(line)
        seen.update(gram for gram in _four_grams(key) if gram in wanted)
        if key in wanted_lines:
            seen_lines.add(key)
    return {
        split: _overlap([list(_four_grams(key)) for key in lines], seen, lines, seen_lines)
        for split, lines in keys.items()
    }


def _overlap(
    grams: list[list[FourGram]], seen: set[FourGram], lines: list[str], seen_lines: set[str]
) -> Overlap:
    flat = [gram for line in grams for gram in line]
    covered = sum(1 for line in grams if line and seen.issuperset(line))
    return Overlap(
        four_grams_seen_share=sum(gram in seen for gram in flat) / max(len(flat), 1),
        lines_covered_share=covered / max(len(lines), 1),
        duplicate_lines=sum(line in seen_lines for line in lines),
    )


def _four_grams(key: str) -> Iterator[FourGram]:
    words = key.split(" ")
    return zip(words, words[1:], words[2:], words[3:], strict=False)
