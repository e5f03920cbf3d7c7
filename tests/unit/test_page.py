"""The page: the committed one, links to records, translations side by side, and pictures."""

import html.parser
import re
import shutil
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_comparisons import group_of, pairs_of
from synthetic_reports import make, save

from experiments.records.measurement import write_measurement
from experiments.records.record import RECORD_NAME
from experiments.report.__main__ import main
from experiments.report.document import document
from experiments.report.page.page import NAME, PRIVATE_NAME
from experiments.report.page.svg import inline
from experiments.report.page.translations import chosen_runs, marked
from experiments.report.papers.reference import read_papers

ROOT = Path(__file__).resolve().parents[2]
replace = msgspec.structs.replace


def written(folder: Path) -> dict[str, bytes]:
    report = folder / "results" / "report"
    return {
        path.relative_to(report).as_posix(): path.read_bytes()
        for path in sorted(report.rglob("*"))
        if path.is_file()
    }


class Page(html.parser.HTMLParser):
    """What a test asks of a page: ids, links, tables with their captions and header cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tables: list[dict[str, int]] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if found.get("id"):
            self.ids.append(found["id"] or "")
        if tag == "a":
            self.links.append(found.get("href") or "")
        if tag in ("script", "img", "iframe") and found.get("src"):
            self.loaded.append(found["src"] or "")
        if tag == "link":
            self.loaded.append(found.get("href") or "")
        if tag == "svg":
            self.images.append(found)
        if tag == "table":
            self.tables.append({"caption": 0, "th": 0, "td": 0, "without scope": 0})
        elif tag in ("caption", "th", "td") and self.tables:
            self.tables[-1][tag] += 1
            self.tables[-1]["without scope"] += tag == "th" and "scope" not in found


def test_the_committed_report_is_what_the_committed_records_give(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of it, byte for byte; `make report` writes it."""
    committed = written(results)
    shutil.rmtree(results / "results" / "report")
    assert make(results, monkeypatch=monkeypatch) == 0
    first = written(results)
    assert first == committed
    assert len(first["index.html"]) < 1_000_000


def test_the_page_needs_nothing_beside_it_and_its_links_lead_somewhere() -> None:
    path = ROOT / "results" / "report" / NAME
    page = Page(path)
    assert page.loaded == ["data:,"]
    text = path.read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (path.parent / link).is_file(), link
    ids = set(page.ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= ids


def test_every_table_has_a_caption_and_every_header_says_whose_it_is() -> None:
    page = Page(ROOT / "results" / "report" / NAME)
    assert len(page.tables) > 20
    for table in page.tables:
        assert table["caption"] == 1
        assert table["th"] > 0
        assert table["without scope"] == 0
    assert len(page.images) >= 4
    assert all(image["role"] == "img" and image["aria-label"] for image in page.images)
    text = (ROOT / "results" / "report" / NAME).read_text(encoding="utf-8")
    regions = re.findall(r'role="region" aria-label="([^"]*)"', text)
    assert len(regions) > 20
    assert len(regions) == len(set(regions))


def test_every_number_of_a_run_leads_to_its_record() -> None:
    """Rows of runs link each number to the lines that have the record and its command.

    That is the row's record, but where columns are of several, as those of alpha are.
    """
    text = (ROOT / "results" / "report" / NAME).read_text(encoding="utf-8")
    rows = re.findall(r"<tr>\s*<th scope=\"row\"><a href=\"#(r[0-9]+)\">(.*?)</tr>", text, re.S)
    of_one_record = 0
    for source, row in rows:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
        numbers = [cell for cell in cells if re.match(r"[-+]?\d", re.sub(r"<[^>]*>", "", cell))]
        links = [re.findall(r'href="#(r[0-9]+)"', cell) for cell in numbers]
        assert all(len(found) == 1 and f'id="{found[0]}"' in text for found in links)
        of_one_record += links == [[source]] * len(links)
    assert of_one_record > 20
    for record in (ROOT / "results" / "runs").rglob(RECORD_NAME):
        command = f"python -m experiments.rerun {record.parent.relative_to(ROOT)}"
        assert f"<code>{command}</code>" in text
        assert f'href="../{record.relative_to(ROOT / "results")}"' in text


def test_the_answer_comes_first_and_has_a_sentence_a_variant() -> None:
    text = (ROOT / "results" / "report" / NAME).read_text(encoding="utf-8")
    answer, table = text.index('class="answers"'), text.index("<table")
    assert text.index("In short</h2>") < answer < table < text.index("<svg")
    assert text.index('id="papers"') < text.index("<svg")


@pytest.mark.usefixtures("no_pictures")
def test_a_job_that_two_experiments_share_has_a_record_in_each(tmp_path: Path) -> None:
    """Each section's numbers lead to the record of its own experiment."""
    shared = [synthetic.record(8), synthetic.record(1)]
    for experiment in ("one", "other"):
        records = [replace(r, job=replace(r.job, experiment=experiment)) for r in shared]
        save(tmp_path / "runs" / experiment, *records)
    assert main(["--records", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    path = tmp_path / "report" / NAME
    ids = Page(path).ids
    assert len(ids) == len(set(ids))
    text = path.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="section-\d+"(.*?)</section>', text, re.S)
    assert len(sections) == 2
    shown = set()
    for section in sections:
        linked = set(re.findall(r'href="#(r[0-9]+)"', section))
        assert linked == set(re.findall(r'<tbody id="(r[0-9]+)"', section))
        assert len(linked) == 2
        (heading,) = re.findall(r"<h2[^>]*>\d+\. (\w+): ", section)
        found = re.findall(r'href="\.\./runs/(\w+)/job(\d)/record\.json"', section)
        assert found == [(heading, "0"), (heading, "1")]
        shown.add(heading)
    assert shown == {"one", "other"}


@pytest.mark.usefixtures("no_pictures")
def test_a_diverged_training_leads_to_its_record(tmp_path: Path) -> None:
    records = [synthetic.record(8), synthetic.record(1, diverged_after=150)]
    save(tmp_path / "runs", *records)
    write_measurement(tmp_path / "runs" / "measurement.json", synthetic.measurement(records[:1]))
    assert main(["--records", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    page = Page(tmp_path / "report" / NAME)
    assert {link[1:] for link in page.links if re.match(r"#r[0-9]+$", link)} <= set(page.ids)
    assert "mqa (diverged)" in (tmp_path / "report" / NAME).read_text(encoding="utf-8")


# Translations.


def test_translations_side_by_side_are_of_one_seed_and_one_baseline() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2) for seed in (1, 2)]
    (_, table) = pairs_of([*records, synthetic.record(1, 2)])
    shown = [(record.variant, record.seed) for _, record in chosen_runs(table)]
    assert shown == [("mha", 2), ("gqa2", 2), ("mqa", 2)]
    made = {("identity", 8): (0.05, 0.1), ("mean", 2): (0.1,), ("mean", 1): (0.05,)}
    made[("first", 1)] = (0.1,)
    records = [
        synthetic.record(heads, uptrained=(method, alpha))
        for (method, heads), alphas in made.items()
        for alpha in alphas
    ]
    shown_names = [record.variant for _, record in chosen_runs(pairs_of(records)[-1])]
    assert shown_names == ["mha-identity-0.1", "gqa2-ff768-mean-0.1", "mqa-ff768-first-0.1"]
    assert chosen_runs([]) == []


def test_words_that_the_baseline_has_not_are_marked() -> None:
    baseline = ["Wählen", "Sie", "den", "Namen", "des", "Symbols."]
    found = list(marked(["Wählen", "Sie", "einen", "Namen", "des", "neuen", "Symbols."], baseline))
    assert [word for word, same in found if not same] == ["einen", "neuen"]
    assert [word for word, _ in found] == [
        "Wählen",
        "Sie",
        "einen",
        "Namen",
        "des",
        "neuen",
        "Symbols.",
    ]


# Text that must not be redistributed.


@pytest.mark.usefixtures("no_pictures")
def test_other_text_is_on_a_page_of_its_own_where_it_lies_here(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The committed page is the same with and without the data beside it."""
    runs = results / "results" / "runs" / "quickstart"
    text = {"en": "a source of line {}", "de": "a reference of line {}"}
    data = results / "data" / "other-0123"
    sums = {}
    for language, line in text.items():
        content = "".join(f"{line.format(number)}\n" for number in range(840)).encode()
        path = data / "text" / f"test.{language}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sums[f"text/test.{language}"] = synthetic.sha256(content.decode())
    for path in runs.rglob(RECORD_NAME):
        record = msgspec.json.decode(path.read_bytes())
        record["data"]["name"] = "other"
        record["data"]["files"] |= sums
        path.write_bytes(msgspec.json.encode(record))
    assert make(results, monkeypatch=monkeypatch) == 0
    alone = (results / "results" / "report" / NAME).read_bytes()
    assert b"a reference of line" not in alone
    assert b"<mark>" in alone
    assert not (results / "results" / "report" / PRIVATE_NAME).exists()
    capsys.readouterr()
    assert make(results, "--data", "data", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"report: results/report/{name}" for name in (NAME, PRIVATE_NAME)
    ]
    assert (results / "results" / "report" / NAME).read_bytes() == alone
    private = (results / "results" / "report" / PRIVATE_NAME).read_text(encoding="utf-8")
    assert "a reference of line" in private
    assert "This page holds text that must not be redistributed." in private
    capsys.readouterr()
    (data / "text" / "test.de").write_text("another\n", encoding="utf-8")
    assert make(results, "--data", "data", monkeypatch=monkeypatch) == 0
    assert not (results / "results" / "report" / PRIVATE_NAME).exists()
    assert capsys.readouterr().out.splitlines()[-1] == f"report: results/report/{NAME}"


# Pictures.


def test_a_picture_keeps_the_ids_and_groups_that_say_something_under_its_own_name() -> None:
    svg = (
        '<?xml version="1.0"?><svg viewBox="0 0 10 20" width="10pt"><metadata>x</metadata>'
        '<defs><path id="m1" d="M 1.23456 -0.0001" style="stroke: #000000"/></defs>'
        '<g id="unused"><g><use xlink:href="#m1" x="3.999"/></g></g><g class="c"><g/></g>'
        '<text x="1.26" style="opacity: 0.18">0.05</text></svg>'
    )
    assert inline(svg, "p1", 'a "b"') == (
        '<svg role="img" aria-label="a &quot;b&quot;" viewBox="0 0 10 20" style="max-width:10pt">'
        '<defs><path id="p1-m0" d="M 1.2 0" style="stroke: currentColor"/></defs>'
        '<use href="#p1-m0" x="4"/><g class="c"><g/></g>'
        '<text x="1.3" style="opacity: 0.18">0.05</text></svg>'
    )


def test_a_style_that_is_often_there_becomes_a_class_of_that_picture() -> None:
    red, blue = '<g style="fill: red"/>', '<g style="fill: blue"/></svg>'
    assert inline(f'<svg viewBox="0 0 1 1">{red * 3}{blue}', "p1", "x").endswith(
        "<style>.p1-0{fill: red}</style>" + '<g class="p1-0"/>' * 3 + blue
    )


def test_the_pictures_of_the_page_read_as_matplotlib_wrote_them() -> None:
    """Every text of every picture, in its order."""
    records = [
        synthetic.record(heads, uptrained=("mean", alpha))
        for heads in (8, 1)
        for alpha in (0.0, 0.05, 0.1)
    ]
    for section in document([group_of(records, measured=False)], read_papers()).sections:
        plots = [*section.plots, *(plot for _, plot in section.exhibits)]
        assert plots
        for plot in plots:
            before, after = (
                re.findall(r"<text[^>]*>([^<]*)</text>", svg)
                for svg in (plot.drawn.svg, inline(plot.drawn.svg, "p", ""))
            )
            assert after == before
            assert "0.05" in before
