"""Translations of the variants side by side: the lines with the worst and the best of them.

A line's score is sacrebleu's chrF of that line alone, of the counts that records keep: no reference
is needed for it. Source and reference are text of a corpus. That of the embedded sample may be
shown anywhere; other text is found where it was prepared, and only for a page that stays there.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.corpora.registry import open_corpus
from data_prep.spec import DataError, DataSpec
from experiments.errors import ExperimentError
from experiments.metrics import METRICS, scores_of_sums
from experiments.records.hypotheses import read_hypotheses
from experiments.records.record import Record
from experiments.records.storage import read_lines
from experiments.report.answers import headline_pairs, trained_longest
from experiments.report.archive import Archive, in_words
from experiments.report.groups import Group
from experiments.report.quality.comparisons import Pair
from experiments.report.selection import ScoreKind

# MPL-2.0 (data_prep/corpora/sample/LICENSE).
EMBEDDED = "sample_en_de"
SHOWN = 4  # lines of each kind
METRIC = METRICS["chrf"]

# A word, and whether the baseline's translation has it in this place.
Word = tuple[str, bool]


@dataclass(frozen=True)
class Translation:
    """One system's translation of a line; words that the baseline's has not are told apart."""

    variant: str
    words: list[Word]
    chrf: float


@dataclass(frozen=True)
class Line:
    """A line of test; `number` counts from 1, source and reference are None where not at hand."""

    number: int
    source: str | None
    reference: str | None
    translations: list[Translation]


@dataclass(frozen=True)
class SideBySide:
    """Lines in groups with a heading each; `is_private` where text must not be redistributed."""

    title: str
    languages: tuple[str, str]
    chosen: list[tuple[str, list[Line]]]
    is_private: bool


@dataclass(frozen=True)
class System:
    """One run's translations, with the score of each line."""

    name: str
    lines: list[str]
    chrf: list[float]


# By the number of a section.
SideBySides = dict[int, SideBySide]


def all_side_by_side(
    groups: Sequence[Group], archive: Archive, folders: Sequence[Path] = ()
) -> tuple[SideBySides, list[str]]:
    """Those of all groups, numbered from 1, and a line for each whose files are damaged."""
    shown, refused = {}, []
    for number, group in enumerate(groups, start=1):
        try:
            if found := side_by_side(group, archive, folders):
                shown[number] = found
        except ExperimentError as error:
            refused.append(str(error))
    return shown, refused


def side_by_side(group: Group, archive: Archive, folders: Sequence[Path] = ()) -> SideBySide | None:
    """None where translations are not kept; `folders` hold prepared data.

    Raises ExperimentError when those that are kept are not those of the records.
    """
    chosen = chosen_runs(headline_pairs(group))
    if not chosen:
        return None
    systems = [
        system
        for pair, record in chosen
        if (system := system_of(record, pair.split, pair.kind, archive))
    ]
    if len(systems) < 2 or len({len(system.lines) for system in systems}) != 1:
        return None
    pair, record = chosen[0]
    text, is_private = text_of(record, pair.split, folders)
    baseline, last = systems[0], systems[-1]
    means = [sum(scores) / len(systems) for scores in zip(*(s.chrf for s in systems), strict=True)]
    ahead = [b - a for a, b in zip(baseline.chrf, last.chrf, strict=True)]
    kinds = {
        "Worst lines: the lowest mean chrF": _lowest(means),
        "Best lines: the highest mean chrF": _lowest([-mean for mean in means]),
        f"{last.name} falls furthest behind {baseline.name}": _lowest(ahead),
        f"{last.name} gets furthest ahead of {baseline.name}": _lowest([-each for each in ahead]),
    }
    return SideBySide(
        title=f"{pair.title}, seed {record.seed}",
        languages=(record.data.source_lang, record.data.target_lang),
        chosen=[
            (heading, [_line(number, text, systems) for number in numbers])
            for heading, numbers in kinds.items()
        ],
        is_private=is_private,
    )


def chosen_runs(pairs: Sequence[Pair]) -> list[tuple[Pair, Record]]:
    """Of one seed runs of a baseline, a grouped and a multi-query variant of it, the first each."""
    shown = trained_longest(pairs)
    grouped = [p for p in shown if p.variant.architecture.num_kv_heads > 1]
    single = [p for p in shown if p.variant.architecture.num_kv_heads == 1]
    if not shown:
        return []
    first = (grouped or single)[0]
    beside = [
        pair
        for pair in single
        if pair.baseline is first.baseline and set(pair.seeds) & set(first.seeds)
    ]
    variants = [*grouped[:1], *beside[:1]]
    seed = min(set.intersection(*(set(pair.seeds) for pair in variants)))
    runs = [pair.runs[pair.seeds.index(seed)] for pair in variants]
    own = [(pair, variant) for pair, (_, variant) in zip(variants, runs, strict=True)]
    return [(first, runs[0][0]), *own]


def system_of(record: Record, split: str, kind: ScoreKind, archive: Archive) -> System | None:
    """A run's translations; None where only counts are kept, or nothing.

    Raises ExperimentError when they are not those of the record.
    """
    path = archive.path_of(record)
    score = Pair.found(record, split, kind)
    if path is None or score is None:
        return None
    folder = path.parent / "hypotheses"
    if not list(folder.glob(f"{score.hypotheses_sha256}*")):
        return None
    try:
        kept = read_hypotheses(folder, score.hypotheses_sha256)
        counts = kept.of(METRIC.name).lines
    except ExperimentError as error:
        raise ExperimentError(f"{in_words(path)}: {error}") from error
    if not kept.lines:
        return None
    if not len(counts) == len(kept.lines) == score.lines:
        raise ExperimentError(
            f"{in_words(path)}: {len(kept.lines)} translations and counts of {len(counts)} for "
            f"{score.lines} lines (restore the files)"
        )
    scores = scores_of_sums(METRIC.make(None), counts)
    return System(record.variant, kept.lines, [round(score, 4) for score in scores])


def _lowest(values: Sequence[float]) -> list[int]:
    """The places of the lowest values; of equal ones the first."""
    return sorted(range(len(values)), key=lambda place: (values[place], place))[:SHOWN]


def _line(number: int, text: list[tuple[str, str]], systems: Sequence[System]) -> Line:
    source, reference = text[number] if text else (None, None)
    baseline = systems[0].lines[number].split()
    return Line(
        number=number + 1,
        source=source,
        reference=reference,
        translations=[
            Translation(s.name, list(marked(s.lines[number].split(), baseline)), s.chrf[number])
            for s in systems
        ],
    )


def marked(words: Sequence[str], baseline: Sequence[str]) -> Iterator[Word]:
    """Each word, and whether it is the baseline's too, in the order of both."""
    matcher = difflib.SequenceMatcher(None, baseline, words, autojunk=False)
    for what, _, _, start, end in matcher.get_opcodes():
        yield from ((word, what == "equal") for word in words[start:end])


def text_of(
    record: Record, split: str, folders: Sequence[Path]
) -> tuple[list[tuple[str, str]], bool]:
    """Source and reference line by line, and whether they must not be redistributed."""
    if record.data.name == EMBEDDED:
        return _embedded(record, split), False
    names = [f"text/{split}.{lang}" for lang in _languages(record)]
    for folder in folders:
        for data in sorted(folder.glob("*")):
            sides = [data / name for name in names]
            if all(map(Path.is_file, sides)):
                texts = {name: (data / name).read_bytes() for name in names}
                if _is_the_records(record, texts):
                    source, target = map(read_lines, sides)
                    return list(zip(source, target, strict=True)), True
    return [], False


def _embedded(record: Record, split: str) -> list[tuple[str, str]]:
    """The sample's text; nothing where the record's was another, such as an older sample."""
    source, target = _languages(record)
    spec = DataSpec(
        name=record.data.name,
        source_lang=source,
        target_lang=target,
        vocab_size=record.data.vocab_size,
    )
    try:
        corpus = open_corpus(spec)
        pairs = list(corpus.pairs(split, Path()))
    except DataError as error:
        raise ExperimentError(str(error)) from error
    sides = dict(zip(corpus.languages, zip(*pairs, strict=True), strict=True))
    texts = {
        f"text/{split}.{lang}": "".join(f"{line}\n" for line in lines).encode("utf-8")
        for lang, lines in sides.items()
    }
    if not _is_the_records(record, texts):
        return []
    return list(zip(sides[source], sides[target], strict=True))


def _languages(record: Record) -> tuple[str, str]:
    return record.data.source_lang, record.data.target_lang


def _is_the_records(record: Record, texts: dict[str, bytes]) -> bool:
    """Whether these files have the checksums that the record has of its data."""
    return all(
        record.data.files.get(name) == hashlib.sha256(text).hexdigest()
        for name, text in texts.items()
    )
