"""Archives like WMT14's, made of other text: for benchmarks and tests where there is no network.

They have the real names, the real members and members that nobody wants, in the real layout, and
come with a table of sources that has their sizes and checksums.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import msgspec

from data_prep.manifest import write_json
from data_prep.sources import WMT14_TABLE, Archive, Sources, read_sources
from data_prep.text import Pair, sha256_of_file

TABLE_NAME = "sources.json"
UNWANTED = b"Nobody wants this member.\n" * 1000


def write_mirror(
    folder: Path,
    train: Mapping[str, Sequence[Pair]],
    dev: Sequence[Pair],
    test: Sequence[Pair],
    filtered: Sequence[Pair],
) -> Path:
    """Write the archives and their table into `folder`; returns the table's path.

    `train` has the pairs by archive: europarl-v7, commoncrawl, news-commentary-v9.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"dev": dev, "test": test, "test_filtered": filtered}
    table = read_sources(WMT14_TABLE)
    archives = []
    for archive in table.archives:
        pairs = train[archive.name] if archive.role == "train" else texts[archive.role]
        path = folder / archive.download.name
        _write_archive(path, archive, pairs)
        archives.append(
            msgspec.structs.replace(
                archive,
                checksum=sha256_of_file(path),
                size_bytes=path.stat().st_size,
                pairs=len(pairs),
            )
        )
    sources = Sources(title="Synthetic", licence="synthetic text", archives=tuple(archives))
    write_json(folder / TABLE_NAME, sources)
    return folder / TABLE_NAME


def varied(pairs: Sequence[Pair], count: int, join: int = 2) -> Iterator[Pair]:
    """`count` distinct pairs: `join` neighbours joined, with a number that no other pair has."""
    stream = cycle(pairs)
    for number in range(count):
        sides = zip(*islice(stream, join), strict=True)
        source, target = (" ".join(side) for side in sides)
        yield f"{source} ({number})", f"{target} ({number})"


def segments(lines: Iterable[str]) -> str:
    """Lines as a test set's SGML; a line must not span segments."""
    body = "".join(f'<seg id="{i}">{line}</seg>\n' for i, line in enumerate(lines, start=1))
    return f'<srcset setid="newstest">\n<doc docid="1">\n<p>\n{body}</p>\n</doc>\n</srcset>\n'


def _write_archive(path: Path, archive: Archive, pairs: Sequence[Pair]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as stream:
        _add(stream, "training/europarl-v7.cs-en.cs", UNWANTED)
        for side, member in enumerate(archive.members):
            lines = (pair[side] for pair in pairs)
            text = segments(lines) if member.endswith(".sgm") else "".join(f"{x}\n" for x in lines)
            _add(stream, member, text.encode("utf-8"))
        _add(stream, "training/europarl-v7.fr-en.fr", UNWANTED)


def _add(stream: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    stream.addfile(entry, io.BytesIO(content))
