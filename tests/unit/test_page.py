"""The page: what it is made of, and what a damaged file does to it."""

import dataclasses
import html.parser
import lzma
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_comparisons import pairs_of

from experiments.records.hypotheses import COUNTS
from experiments.records.measurement import write_measurement
from experiments.records.record import RECORD_NAME, Record, write_record
from experiments.report.__main__ import main
from experiments.report.answers import answers, in_order, lead, open_questions, scale
from experiments.report.document import document
from experiments.report.groups import Group, group_records, source_of
from experiments.report.page.page import NAME, PRIVATE_NAME
from experiments.report.page.svg import inline
from experiments.report.page.translations import chosen_runs, marked
from experiments.report.papers.reference import read_papers

ROOT = Path(__file__).resolve().parents[2]
replace = msgspec.structs.replace


def make(folder: Path, *more: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The report of `folder`/results, made as `make report` makes it."""
    monkeypatch.chdir(folder)
    arguments = ["--records", "results/runs", "--measurements", "results/measurements"]
    return main([*arguments, "--tests", "results/tests", "--out", "results/report", *more])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a copy of the committed results."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a report's time is drawing, and these tests look at none of it."""
    monkeypatch.setattr("experiments.report.pictures.plots.group_pictures", lambda _: {})
    monkeypatch.setattr("experiments.report.document.group_exhibits", lambda _: [])


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
    rows = re.findall(
        r"<tr>\s*<th scope=\"row\"><a href=\"#(job-[0-9a-f]+)\">(.*?)</tr>", text, re.S
    )
    of_one_record = 0
    for source, row in rows:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
        numbers = [cell for cell in cells if re.match(r"[-+]?\d", re.sub(r"<[^>]*>", "", cell))]
        links = [re.findall(r'href="#(job-[0-9a-f]+)"', cell) for cell in numbers]
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


def group_of(records: list[Record], *, measured: bool = True) -> Group:
    measurements = [synthetic.measurement(records)] if measured else []
    (group,) = group_records(records, measurements)
    return group


def test_an_answer_without_tests_and_speed_says_so() -> None:
    (answer,) = answers(group_of([synthetic.record(8), synthetic.record(1)], measured=False))
    assert answer.variant == "mqa"
    assert answer.sentence == (
        "1 key/value head in place of 8, against mha. Quality is not tested. Its speed was not "
        "measured beside."
    )
    (answer,) = answers(group_of([synthetic.record(8), synthetic.record(1)]))
    assert (
        "Its decoder is 2.16 times as fast (94% interval 2.16 to 2.17) with beam 4"
        in answer.sentence
    )
    assert "MiB of keys and values in place of" in answer.sentence


def test_the_answer_on_an_uptrained_model_says_how_it_was_made() -> None:
    """Of several alphas the largest; the control is what the others are set against."""
    records = [
        synthetic.record(heads, uptrained=(method, alpha))
        for heads, method in ((8, "identity"), (1, "mean"))
        for alpha in (0.0, 0.05)
    ]
    (answer,) = answers(group_of(records, measured=False))
    said = lead(group_of(records)) or ""
    assert said.startswith(
        "mha-identity-0.05, with 8 key/value heads and trained on like the others, has "
    )
    assert answer.variant == "mqa-ff768-mean-0.05"
    assert answer.sentence.startswith(
        "1 key/value head in place of 8, converted with the method mean and trained on for 5% of "
        "the updates, against the model with all heads that was trained on alike. Quality is not "
        "tested."
    )


def test_what_is_open_is_said() -> None:
    said = " ".join(open_questions(group_of([synthetic.record(8), synthetic.record(1)])))
    assert said.startswith("One seed: nothing is said of other trainings")
    assert "Times are of one machine (Synthetic CPU)" in said
    several = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2, 3)]
    assert "seed" not in " ".join(open_questions(group_of(several, measured=False)))
    assert "Speed was not measured." in open_questions(group_of(several, measured=False))
    best = 100.0
    scores = [
        replace(score, value=best) for score in synthetic.finished(several[0]).evaluation.model_free
    ]
    beaten = [synthetic.with_evaluation(record, model_free=scores) for record in several]
    assert any(
        line.startswith("No model here translates well: the translation of the nearest training")
        for line in open_questions(group_of(beaten))
    )


def group_tested(records: list[Record], ends: dict[str, tuple[float, float, float]]) -> Group:
    """Variants by name with the 90 % interval of their difference and p_worse."""
    found = {}
    for pair in (pair for table in pairs_of(records) for pair in table):
        tests = synthetic.comparison(pair, *ends[pair.variant.name])
        found[tests.key] = tests
    (group,) = group_records(records, [], found)
    return group


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            (-1.3, -0.7, 0.9),
            "It costs quality, more than 0.5 BLEU: BLEU -1.00 over 3 seeds, 95% "
            "interval -1.40 to -0.60. These data show that it loses less than 1.31 BLEU. ",
        ),
        (
            (-1.3, -0.3, 0.9),
            "It costs quality: BLEU -0.80 over 3 seeds, 95% interval -1.40 to "
            "-0.20. These data show that it loses less than 1.31 BLEU, but not that it loses less "
            "than 0.5 BLEU. ",
        ),
        (
            (-0.4, -0.2, 0.01),
            "It costs quality, but less than 0.5 BLEU: BLEU -0.30 over 3 seeds, "
            "95% interval -0.50 to -0.10. Its",
        ),
        (
            (-0.4, 0.2, 0.01),
            "If it costs quality, it is less than 0.5 BLEU: BLEU -0.10 over 3 "
            "seeds, 95% interval -0.50 to +0.30. Its",
        ),
        (
            (-0.4, 0.2, 0.04),
            "Whether it costs quality is open: BLEU -0.10 over 3 seeds, 95% "
            "interval -0.50 to +0.30. By itself its test shows that it loses less than 0.5 "
            "BLEU, but not with Holm's correction for the 2 variants that are tested together. ",
        ),
        (
            (-0.9, 0.2, 0.2),
            "Whether it costs quality is open: BLEU -0.35 over 3 seeds, 95% "
            "interval -1.00 to +0.30. These data show that it loses less than 0.91 BLEU, but "
            "not that it loses less than 0.5 BLEU. ",
        ),
        (
            (0.2, 0.4, 0.001),
            "It gains quality: BLEU +0.30 over 3 seeds, 95% interval +0.10 to +0.50. Its",
        ),
    ],
)
def test_an_answer_says_what_is_lost_and_what_is_shown(
    ends: tuple[float, float, float], said: str
) -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2, 3)]
    _, answer = answers(group_tested(records, {"gqa2": (-0.9, 0.2, 0.2), "mqa": ends}))
    assert f"against mha. {said}" in answer.sentence


def test_what_can_be_told_apart_is_said_by_variant() -> None:
    """Consistent with each answer: 0 is outside an interval where half of it is exceeded."""
    records = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2, 3)]
    group = group_tested(records, {"gqa2": (-0.6, -0.2, 0.01), "mqa": (-3.0, 1.0, 0.9)})
    (said,) = [line for line in open_questions(group) if "told from none" in line]
    assert said.endswith("and the 500 lines of test that is 0.30 to 2.10 by variant.")
    (said,) = [line for line in open_questions(group) if "Holm" in line]
    assert "is tested for 2 variants, and these 2 p-values are corrected together" in said
    alone = open_questions(group_tested(records[:3] + records[6:], {"mqa": (-3.0, 1.0, 0.9)}))
    assert any(line.endswith("lines of test that is 2.10.") for line in alone)
    assert "Holm" not in "".join(alone)


def test_a_variant_with_one_seed_among_several_is_of_that_seed() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2) for seed in (1, 2, 3)]
    records.append(synthetic.record(1, 2))
    group = group_tested(records, dict.fromkeys(("gqa2", "mqa"), (-0.9, 0.2, 0.2)))
    gqa, mqa = answers(group)
    assert "Whether it costs quality is open: BLEU -0.35 over 3 seeds" in gqa.sentence
    assert "Whether it costs quality for this seed is open: BLEU -0.35, 95%" in mqa.sentence
    assert open_questions(group)[0] == (
        "One seed of mqa: nothing is said of other trainings, which differ by chance."
    )
    pairs = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2)]
    assert open_questions(group_of(pairs))[0].startswith("2 seeds are few: ")


def test_answers_name_the_trainings_that_diverged() -> None:
    records = [synthetic.record(8, seed) for seed in (1, 2)] + [synthetic.record(1, 1)]
    records += [synthetic.record(1, seed, diverged_after=150) for seed in (2, 3)]
    records += [synthetic.record(8, 3, diverged_after=90), synthetic.record(2, diverged_after=60)]
    found = {answer.variant: answer for answer in answers(group_of(records))}
    assert list(found) == ["mqa", "mha", "gqa2"]
    assert found["mqa"].sentence.endswith(
        "2 of its 3 trainings diverged (seed 2 after update 150, seed 3 after update 150): what is "
        "said of quality leaves those out."
    )
    assert found["mha"].sentence.startswith("8 key/value heads. 1 of its 3 trainings diverged ")
    assert found["mha"].source == source_of(records[-2])
    assert found["gqa2"].sentence == (
        "2 key/value heads. Its training diverged (seed 1 after update 60): so it has neither "
        "quality nor speed."
    )


def test_each_conversion_answers_with_its_own_longest_uptraining() -> None:
    made = {("identity", 8): (0.05, 0.1), ("mean", 1): (0.05, 0.1), ("first", 1): (0.05,)}
    records = [
        synthetic.record(heads, uptrained=(method, alpha))
        for (method, heads), alphas in made.items()
        for alpha in alphas
    ]
    records.append(synthetic.record(1, uptrained=("first", 0.1), diverged_after=30))
    found = [answer.variant for answer in answers(group_of(records))]
    assert sorted(found[:2]) == ["mqa-ff768-first-0.05", "mqa-ff768-mean-0.1"]
    assert found[2:] == ["mqa-ff768-first-0.1"]


def test_without_a_training_that_ended_no_scale_is_known() -> None:
    group = group_of([synthetic.record(8, diverged_after=9)], measured=False)
    assert scale(group) == "unknown"
    said = " ".join(open_questions(group))
    assert f"{group.first.architecture.parameters:,} parameters and 9,900 training pairs" in said
    assert "smaller" not in said
    alone = group_of([synthetic.record(1, uptrained=("mean", 0.0))], measured=False)
    assert scale(alone) == "unknown"


def test_scales_are_told_apart_and_the_largest_comes_first() -> None:
    toy = synthetic.record(8, updates=100)
    small = synthetic.record(8, data_name="multi30k_en_de", updates=600)
    uptrained = synthetic.record(1, updates=100, uptrained=("mean", 0.1))
    other = replace(uptrained, job=replace(uptrained.job, experiment="uptrain"))
    groups = group_records([toy, small, other])
    assert [scale(group) for group in in_order(groups)] == ["small", "toy", "toy"]
    assert in_order(groups)[1].from_scratch
    assert not in_order(groups)[2].from_scratch


def test_no_table_has_rows_of_two_scales() -> None:
    """Nor of two experiments, but where models are set against each other."""
    narrow = dataclasses.replace(synthetic.SMALL, d_model=96, mha_d_ff=384)
    toys = [synthetic.record(heads, updates=100) for heads in (8, 2, 1)]
    toys += [synthetic.record(heads, updates=100, uptrained=("mean", 0.1)) for heads in (8, 1)]
    toys += [synthetic.record(8, updates=100, baseline=narrow)]
    small = [synthetic.record(heads, updates=600) for heads in (8, 2, 1)]
    papers = [synthetic.wmt14_record(heads) for heads in (8, 1)]
    measurements = [synthetic.measurement(records) for records in (toys, small, papers)]
    groups = group_records([*toys, *small, *papers], measurements)
    found = document(groups, read_papers())
    scales = {source_of(record): scale(group) for group in groups for record in group.records}
    assert set(scales.values()) == {"toy", "small", "paper"}
    tables = [table for table, _ in found.across] + found.wmt14
    for section in found.sections:
        tables += [section.headline, *section.tables, *(table for table, _ in section.exhibits)]
    assert len(found.across) == 1
    with_runs = 0
    for table in tables:
        cells = [table.source(row, 0) for row in range(len(table.rows))]
        shown = {scales[source] for source in cells if source}
        assert len(shown) <= 1
        with_runs += len(shown)
    assert with_runs > 20


def test_each_experiment_has_a_section_of_its_own() -> None:
    one, other = synthetic.record(8), synthetic.record(1)
    other = replace(other, job=replace(other.job, experiment="another"))
    assert len(group_records([one, other])) == 2


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


def test_a_picture_keeps_the_ids_that_it_uses_under_its_own_name() -> None:
    svg = (
        '<?xml version="1.0"?><svg viewBox="0 0 10 20" width="10pt"><metadata>x</metadata>'
        '<defs><path id="m1" d="M 1.23456 -0.0001" style="stroke: #000000"/></defs>'
        '<g id="unused"><use xlink:href="#m1" x="3.999"/></g>'
        '<text x="1.26" style="opacity: 0.18">0.05</text></svg>'
    )
    assert inline(svg, "p1", 'a "b"') == (
        '<svg role="img" aria-label="a &quot;b&quot;" viewBox="0 0 10 20" style="max-width:10pt">'
        '<defs><path id="p1-m1" d="M 1.2 0" style="stroke: currentColor"/></defs>'
        '<g><use href="#p1-m1" x="4"/></g>'
        '<text x="1.3" style="opacity: 0.18">0.05</text></svg>'
    )


# Text that must not be redistributed


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


# Bad input


def save(folder: Path, *records: Record) -> list[Path]:
    paths = [folder / f"job{place}" / RECORD_NAME for place in range(len(records))]
    for path, record in zip(paths, records, strict=True):
        write_record(path, record)
    return paths


def changed(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def apply(raw: bytes) -> bytes:
        record = msgspec.json.decode(raw)
        change(record)
        return msgspec.json.encode(record)

    return apply


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an unknown field": (
        changed(lambda r: r.update(more=1)),
        "top level: Object contains unknown field `more`",
    ),
    "a missing field": (
        changed(lambda r: r.pop("result")),
        "top level: Object missing required field `result`",
    ),
    "a newer schema": (
        changed(lambda r: r.update(schema_version=99, new=1)),
        "schema_version: 99, but this code reads 2 (use the commit that wrote it",
    ),
    "a score that is no number": (
        lambda raw: raw.replace(b'"value":11.15', b'"value":NaN', 1),
        "not JSON",
    ),
    "half of it": (lambda raw: raw[: len(raw) // 2], "not JSON"),
    "nothing in it": (lambda raw: b"", "not JSON"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.usefixtures("no_pictures")
def test_a_bad_record_is_named_and_the_rest_is_reported(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, message = DAMAGES[damage]
    _, bad = save(tmp_path / "runs", synthetic.record(8), synthetic.record(1))
    raw = msgspec.json.encode(msgspec.json.decode(bad.read_bytes()))
    assert apply(raw) != raw
    bad.write_bytes(apply(raw))
    assert main(["--records", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"error: left out: {bad}: {message}")
    page = (tmp_path / "report" / NAME).read_text(encoding="utf-8")
    assert "Left out, because it could not be read" in page
    assert str(bad) in page
    assert ">mha</a>" in page
    assert ">mqa</a>" not in page


@pytest.mark.usefixtures("no_pictures")
def test_of_two_records_of_one_job_that_differ_the_newer_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mha = synthetic.record(8)
    later = mha.job.started_utc.replace(year=2027)
    newer = replace(synthetic.with_evaluation(mha, dev_target_tokens=1))
    newer = replace(newer, job=replace(mha.job, started_utc=later))
    old, new, _ = save(tmp_path / "runs", mha, newer, newer)
    arguments = ["--records", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"error: left out: {old}: ")
    assert "is of the same job and says something else (remove the one that is wrong)" in line
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "from 1 record;" in text
    old.unlink()  # two copies of one record are no contradiction
    assert main(arguments) == 0
    assert new.is_file()


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
        linked = set(re.findall(r'href="#(job-[0-9a-f]+)"', section))
        assert linked == set(re.findall(r'<tbody id="(job-[0-9a-f]+)"', section))
        assert len(linked) == 2
        (heading,) = re.findall(r"<h2[^>]*>\d+\. (\w+): ", section)
        found = re.findall(r'href="\.\./runs/(\w+)/job(\d)/record\.json"', section)
        assert found == [(heading, "0"), (heading, "1")]
        shown.add(heading)
    assert shown == {"one", "other"}


@pytest.mark.usefixtures("no_pictures")
def test_bad_measurements_and_tests_are_named_and_the_rest_is_reported(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = results / "results" / "measurements" / "bad.json"
    bad.write_text("{}", encoding="utf-8")
    tests = sorted((results / "results" / "tests").iterdir())[0]
    tests.write_bytes(tests.read_bytes()[:50])
    assert make(results, monkeypatch=monkeypatch) == 2
    shown = capsys.readouterr().err.strip().split("\n")
    assert len(shown) == 2
    assert "measurements/bad.json: top level: Object missing required field" in shown[0]
    assert f"{tests.name}: not JSON" in shown[1]
    text = (results / "results" / "report" / "report.md").read_text(encoding="utf-8")
    assert "times as fast" in text
    assert "measurements/bad.json" in text


@pytest.mark.usefixtures("no_pictures")
def test_translations_that_are_not_the_records_are_named_and_the_rest_is_reported(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (results / "results" / "runs").rglob("*.txt.xz"):
        path.write_bytes(lzma.compress(b"another\n"))
    assert make(results, monkeypatch=monkeypatch) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert all("its text has another digest (restore the file)" in line for line in lines)
    page = (results / "results" / "report" / NAME).read_text(encoding="utf-8")
    assert "Translations side by side" not in page
    assert "its text has another digest" in page
    assert ">mqa</a>" in page


@pytest.mark.usefixtures("no_pictures")
def test_where_only_counts_are_kept_no_translations_are_shown(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (results / "results" / "runs").rglob("*.txt.xz"):
        path.unlink()
    assert list((results / "results" / "runs").rglob(f"*{COUNTS}"))
    assert make(results, monkeypatch=monkeypatch) == 0
    page = (results / "results" / "report" / NAME).read_text(encoding="utf-8")
    assert "Translations side by side" not in page


def test_nothing_that_can_be_read_is_one_line_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bad,) = save(tmp_path / "runs", synthetic.record(8))
    bad.write_text("{", encoding="utf-8")
    assert main(["--records", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 2
    first, second = capsys.readouterr().err.strip().split("\n")
    assert first.startswith("error: left out: ")
    assert "no record.json in it that can be read (run an experiment first" in second
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_diverged_training_leads_to_its_record(tmp_path: Path) -> None:
    records = [synthetic.record(8), synthetic.record(1, diverged_after=150)]
    save(tmp_path / "runs", *records)
    write_measurement(tmp_path / "runs" / "measurement.json", synthetic.measurement(records[:1]))
    assert main(["--records", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    page = Page(tmp_path / "report" / NAME)
    assert {link[1:] for link in page.links if link.startswith("#job-")} <= set(page.ids)
    assert "mqa (diverged)" in (tmp_path / "report" / NAME).read_text(encoding="utf-8")


def test_the_page_is_made_without_torch(tmp_path: Path) -> None:
    (job,) = (ROOT / "results" / "runs" / "quickstart").glob("mha-seed1-*")
    code = (
        "import sys; from experiments.report.__main__ import main\n"
        f"code = main(['--records', {str(job)!r}, '--out', {str(tmp_path)!r}])\n"
        "print(code, {'torch', 'fairseq', 'gqa_fairseq.models', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("0 set()")


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
