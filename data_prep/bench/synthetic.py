"""Archives like WMT14's, made of other text: for benchmarks and tests where there is no network.

They have the real names and, in the real layout, the real members behind those of other languages,
which nobody wants, and come with a table of sources that has their sizes and checksums.
`python -m data_prep.bench.synthetic` writes them at any size from lines that are joined and
numbered, so that every pair is another one; only the text that is varied is held in memory.
"""

import argparse
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from data_prep.corpora.sample_en_de import Sample
from data_prep.corpora.sources import WMT14_TABLE, Archive, Sources, read_sources
from data_prep.corpora.wmt14_en_de import Wmt14
from data_prep.spec import DataError
from data_prep.system.files import sha256_of_file, write_json
from data_prep.system.parallel import chunks, ordered_map
from data_prep.text import Pair, open_for_writing, pair_writer, read_pairs, text_files

TABLE_NAME = "sources.json"
CHUNK_PAIRS = 10_000
# The other languages of the real archives; their text here is the wanted one, in another order.
OTHER_LANGUAGES = {
    "europarl-v7": ("cs", "es", "fr"),
    "commoncrawl": ("cs", "es", "fr", "ru"),
    "news-commentary-v9": ("cs", "fr", "ru"),
}
# Of so many training pairs one is empty, one has control characters, one is held out, one too long.
FAULTY_EVERY = 10_000


def write_mirror(
    folder: Path,
    train: Mapping[str, Iterable[Pair]],
    dev: Iterable[Pair],
    test: Iterable[Pair],
    filtered: Iterable[Pair],
) -> Path:
    """Write the archives and their table into `folder`; returns the table's path.

    `train` has the pairs by archive: europarl-v7, commoncrawl, news-commentary-v9.
    """
    texts = {"dev": dev, "test": test, "test_filtered": filtered}
    return _write_table(
        folder,
        [
            _write_archive(folder, archive, texts.get(archive.role) or train[archive.name])
            for archive in read_sources(WMT14_TABLE).archives
        ],
    )


def varied(pairs: Sequence[Pair], numbers: Iterable[int]) -> Iterator[Pair]:
    """A pair for each of `numbers`: two or three of `pairs` joined, and the number.

    A pair is joined with ones far from it, and with others each time that all were used.
    """
    for number in numbers:
        turn, first = divmod(number, len(pairs))
        indices = (first + step * 7919 * (turn + 1) for step in range(3 if number % 5 < 2 else 2))
        source, target = zip(*(pairs[index % len(pairs)] for index in indices), strict=True)
        yield f"{' '.join(source)} ({number})", f"{' '.join(target)} ({number})"


def segments(lines: Iterable[str]) -> str:
    """Lines as a test set's SGML; a line must not span segments."""
    body = "".join(f'<seg id="{i}">{line}</seg>\n' for i, line in enumerate(lines, start=1))
    return f'<srcset setid="newstest">\n<doc docid="1">\n<p>\n{body}</p>\n</doc>\n</srcset>\n'


def _write_archive(folder: Path, archive: Archive, pairs: Iterable[Pair]) -> Archive:
    """Write the archive with the text of `pairs`; returns its row of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / archive.download.name
    with tempfile.TemporaryDirectory(dir=folder) as name:
        texts = text_files(Path(name), "wanted", Wmt14.languages)
        if archive.role == "train":
            count = _write_lines(Path(name), pairs)
        else:
            count = _write_segments(texts, list(pairs))
        with tarfile.open(path, "w:gz", compresslevel=1) as stream:
            others = OTHER_LANGUAGES.get(archive.name, ())
            for number, other in enumerate(others):
                for text, member in zip(texts, archive.members, strict=True):
                    name_of_other = member.replace("de", other)
                    _add_half(stream, name_of_other, text, number / len(others))
            for text, member in zip(texts, archive.members, strict=True):
                stream.add(text, member)
    return msgspec.structs.replace(
        archive, checksum=sha256_of_file(path), size_bytes=path.stat().st_size, pairs=count
    )


def _write_lines(folder: Path, pairs: Iterable[Pair]) -> int:
    count = 0
    with pair_writer(folder, "wanted", Wmt14.languages) as write:
        for chunk in chunks(pairs, CHUNK_PAIRS):
            write(chunk)
            count += len(chunk)
    return count


def _write_segments(texts: tuple[Path, Path], pairs: Sequence[Pair]) -> int:
    for text, lines in zip(texts, zip(*pairs, strict=True), strict=True):
        with open_for_writing(text) as stream:
            stream.write(segments(lines))
    return len(pairs)


def _add_half(stream: tarfile.TarFile, member: str, text: Path, place: float) -> None:
    """Add half of `text`, from its start (`place` 0) to its second half (1)."""
    entry = tarfile.TarInfo(member)
    entry.size = text.stat().st_size // 2
    with text.open("rb") as half:
        half.seek(round(entry.size * place))
        stream.addfile(entry, half)


def _write_table(folder: Path, archives: Sequence[Archive]) -> Path:
    sources = Sources(title="Synthetic", licence="synthetic text", archives=tuple(archives))
    write_json(folder / TABLE_NAME, sources)
    return folder / TABLE_NAME


def main(arguments: list[str] | None = None) -> int:
    """Write a mirror; the exit code is 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    archives = read_sources(WMT14_TABLE).archives
    write = partial(_write_from, options.text, options.pairs, options.folder)
    try:
        # Every archive is written by a process of its own.
        written = list(ordered_map(write, archives, os.cpu_count() or 1))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_write_table(options.folder, written))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.bench.synthetic",
        description="Write a mirror like WMT14's of other text.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the archives are written")
    parser.add_argument(
        "--pairs", type=int, default=4_520_620, metavar="N", help="of training (%(default)s)"
    )
    parser.add_argument(
        "--text",
        type=Path,
        nargs=2,
        metavar=("SOURCE", "TARGET"),
        help="what is varied: two files of lines, plain or .gz or .xz; else the embedded sample",
    )
    return parser


def _write_from(
    text: tuple[Path, Path] | None, training_pairs: int, folder: Path, archive: Archive
) -> Archive:
    """Write one archive from `text`: of `training_pairs` its share, of a test set all of it."""
    lines = list(read_pairs(*text) if text else Sample().pairs("train", Path()))
    archives = read_sources(WMT14_TABLE).archives
    dev_pairs, test_pairs = (
        next(each.pairs for each in archives if each.role == role) for role in ("dev", "test")
    )
    held_out, rest = lines[: dev_pairs + test_pairs], lines[dev_pairs + test_pairs :]
    if archive.role != "train":
        start = 0 if archive.role == "dev" else dev_pairs
        return _write_archive(folder, archive, held_out[start:][: archive.pairs])
    train = [each for each in archives if each.role == "train"]
    before = sum(each.pairs for each in train[: train.index(archive)])
    total = sum(each.pairs for each in train)
    start, end = (number * training_pairs // total for number in (before, before + archive.pairs))
    pairs = varied(rest, range(start, end))
    return _write_archive(folder, archive, _with_faults(pairs, held_out[0]))


def _with_faults(pairs: Iterable[Pair], held_out: Pair) -> Iterator[Pair]:
    for number, (source, target) in enumerate(pairs):
        faulty = {
            0: ("", target),
            1: (f"{source}\x07", target),
            2: held_out,
            3: (source * 50, target * 50),
        }
        yield faulty.get(number % FAULTY_EVERY, (source, target))


if __name__ == "__main__":
    sys.exit(main())
