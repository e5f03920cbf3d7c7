"""The document as `index.html`: one file with its pictures, its style and its script."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from experiments.records.record import Record
from experiments.records.storage import write_text
from experiments.report.archive import Archive, in_words
from experiments.report.cells import Table
from experiments.report.document import Document, Plot
from experiments.report.groups import Group, source_of
from experiments.report.page.svg import inline
from experiments.report.page.translations import SideBySides
from experiments.report.papers.reference import NOT_COMPARABLE
from experiments.report.papers.wmt14 import INTRODUCTION
from experiments.report.quality.comparisons import pairs

FOLDER = Path(__file__).parent
NAME = "index.html"
# With text that must not be redistributed: git ignores it.
PRIVATE_NAME = "with-text.html"


@dataclass(frozen=True)
class Link:
    """A file that numbers are from, as the page links to it."""

    href: str
    text: str


@dataclass(frozen=True)
class Origin:
    """Where the numbers of one row are from: its records, and how each is made again."""

    source: str
    variant: str
    records: list[tuple[int, Link, str]]  # seed, file, command
    tests: list[Link]


@dataclass(frozen=True)
class Origins:
    """Of all rows of a section; `measured_again` is the command for all its speeds."""

    rows: list[Origin]
    measurement: Link | None
    measured_again: str


def write_page(found: Document, archive: Archive, shown: SideBySides, path: Path) -> None:
    """Write the page; raises ExperimentError when it cannot be written."""
    write_text(path, render(found, archive, shown, path.parent))


def render(found: Document, archive: Archive, shown: SideBySides, out: Path) -> str:
    """The page that lies in `out`, with these translations of its sections."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = itertools.count(1)
    environment.filters |= {"prose": prose, "inline": picture, "numeric": is_numeric}
    environment.filters["href"] = lambda path: _href(path, out)
    # Thousands of numbers lead to their records, so these have short names here.
    places: dict[str, str] = {}
    environment.filters["place"] = lambda source: places.setdefault(source, f"r{len(places)}")
    return environment.get_template("page.html.j2").render(
        report=found,
        translations=shown,
        origins={s.number: origins(s.group, archive, out) for s in found.sections},
        next_id=lambda: f"t{next(numbers)}",
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        wmt14_introduction=INTRODUCTION,
        not_comparable=NOT_COMPARABLE,
    )


def origins(group: Group, archive: Archive, out: Path) -> Origins:
    """Where the numbers of a section's rows are from."""
    tests = {comparison.key: path for path, comparison in archive.comparisons.items()}
    tested: dict[str, list[Link]] = {}
    for table in pairs(group):
        for pair in table:
            comparison = pair.tests(group)
            if comparison and comparison.key in tests:
                link = Link(_href(tests[comparison.key], out), pair.title)
                tested.setdefault(pair.variant.source, []).append(link)
    rows = [(row.source, row.name, row.records) for row in group.rows]
    rows += [(source_of(r), f"{r.variant} (diverged)", (r,)) for r in group.diverged]
    measured = group.measurement and archive.path_of_measurement(group.measurement)
    jobs = group.measurement.jobs if group.measurement else set()
    return Origins(
        rows=[
            Origin(
                source=source,
                variant=name,
                records=list(_records(records, archive, out)),
                tests=tested.get(source, []),
            )
            for source, name, records in rows
        ],
        measurement=Link(_href(measured, out), measured.name) if measured else None,
        measured_again=_rerun(
            path
            for record in group.finished
            if record.job.id in jobs and (path := archive.path_of(record))
        ),
    )


def _records(
    records: Sequence[Record], archive: Archive, out: Path
) -> Iterator[tuple[int, Link, str]]:
    for record in records:
        path = archive.path_of(record)
        if path is not None:
            yield record.seed, Link(_href(path, out), record.name), _rerun([path])


def _rerun(paths: Iterable[Path]) -> str:
    return " ".join(["python -m experiments.rerun", *(in_words(path.parent) for path in paths)])


def _href(path: Path, out: Path) -> str:
    """The link from a page in `out`."""
    return quote(os.path.relpath(path.absolute(), out.absolute()).replace(os.sep, "/"))


def prose(text: str) -> Markup:
    """A sentence, with `code` in backticks."""
    parts = re.split(r"`([^`]*)`", text)
    code = Markup("<code>{}</code>")
    return Markup("").join(
        code.format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def picture(plot: Plot) -> Markup:
    """The picture as a part of the page.

    A picture names its marks a thousand times, so it has the initials of its file's name for them.
    """
    name = plot.path.removeprefix("plots/").removesuffix(".png")
    initials = "".join(word if word.isdigit() else word[0] for word in name.split("-"))
    return Markup(inline(plot.drawn.svg, f"p{initials}", f"{plot.caption} {plot.words}"))


def is_numeric(table: Table, column: int) -> bool:
    """Whether a column stands to the right."""
    return any(re.match(r"[-+]?\d", row[column]) for row in table.rows)
