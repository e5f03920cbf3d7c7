"""`python -m experiments.report --records DIR`: the report of all records below DIR."""

import sys
from pathlib import Path

from data_prep.system.surroundings import console_of
from experiments.arguments import Parser, command
from experiments.errors import ExperimentError
from experiments.report.answers import in_order
from experiments.report.archive import read_archive
from experiments.report.document import document
from experiments.report.groups import group_records
from experiments.report.page.page import NAME, PRIVATE_NAME, write_page
from experiments.report.page.translations import all_side_by_side
from experiments.report.papers.reference import read_papers
from experiments.report.render import terminal_table, write_markdown


@command()
def main(arguments: list[str] | None = None) -> int:
    """Write the report and print its overview; returns the exit code."""
    parser = Parser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument(
        "--records",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of record.json files, at any depth (may be given several times)",
    )
    parser.add_argument(
        "--measurements",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of measurements, which all speeds come from (may be given several times; "
        "default: measurements/ beside the records)",
    )
    parser.add_argument(
        "--tests",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of tests that python -m experiments.significance made (may be given several "
        "times; default: tests/ beside the records)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of prepared data: source and reference of text that must not be "
        "redistributed, for a second page, with-text.html (may be given several times)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/report"), help="folder (%(default)s)"
    )
    options = parser.parse_args(arguments)
    archive = read_archive(options.records, options.measurements, options.tests)
    groups = in_order(
        group_records(archive.records.values(), list(archive.measurements.values()), archive.tests)
    )
    shown, damaged = all_side_by_side(groups, archive)
    refused = [*archive.refused, *damaged]
    for line in refused:
        print(f"error: left out: {line}", file=sys.stderr)
    if not groups:
        folders = ", ".join(map(str, options.records))
        raise ExperimentError(
            f"{folders}: no record.json in it that can be read (run an experiment first, such "
            "as `make quickstart`)"
        )
    found = document(groups, read_papers(), refused, archive.cards)
    write_markdown(found, options.out)
    pages = {options.out / NAME: shown}
    private = options.out / PRIVATE_NAME
    with_text, _ = all_side_by_side(groups, archive, options.data) if options.data else (shown, [])
    if any(each.is_private for each in with_text.values()):
        pages[private] = with_text
    else:
        private.unlink(missing_ok=True)  # it would show what these records are not
    for path, translations in pages.items():
        write_page(found, archive, translations, path)
    console = console_of(wraps=True)
    for group in groups:
        console.print(terminal_table(group))
    for path in pages:
        console.print(f"report: {path}", soft_wrap=True)
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
