"""The command: the report that it writes, and what a missing or damaged file does to it."""

import lzma
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_reports import HEADS, group_of, make, save

from experiments.records.hypotheses import COUNTS
from experiments.records.measurement import MEASUREMENT_NAME, write_measurement
from experiments.records.record import Record, write_record
from experiments.report.__main__ import main
from experiments.report.page.page import NAME
from experiments.report.papers.reference import NOT_COMPARABLE, read_papers
from experiments.report.render import write_report

ROOT = Path(__file__).resolve().parents[2]
replace = msgspec.structs.replace


def saved(folder: Path, records: list[Record]) -> Path:
    for index, record in enumerate(records):
        write_record(folder / f"job{index}" / "record.json", record)
    return folder


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


def test_the_written_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [synthetic.record(heads, seed) for heads in HEADS for seed in (1, 2)]
    other = synthetic.record(1, data_name="multi30k_en_de")
    first = saved(tmp_path / "a", records)
    beside = tmp_path / "measurements" / "sweep" / MEASUREMENT_NAME
    write_measurement(beside, synthetic.measurement([*records, other]))
    second = saved(tmp_path / "b", [other, records[0]])
    out = tmp_path / "report"
    arguments = ["--records", str(first), "--records", str(second), "--out", str(out)]
    assert main(arguments) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    sections = [heading for heading in headings(text) if re.match(r"\d\.", heading)]
    assert [heading.split(":")[0] for heading in sections] == [
        "1. sample_en_de",
        "2. multi30k_en_de",
    ]
    # Every picture is there, and no mark of the template is left.
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    # Four a group (one of them an exhibit), and key/value heads against time, which needs three.
    assert len(pictures) == 9
    assert all((out / picture).is_file() for picture in pictures)
    assert "{{" not in text
    assert "{%" not in text
    # Tables have as many cells in each line as in their heading, and blank lines around them.
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count(" | ") for line in block.strip().split("\n")}) == 1
        assert text[: text.index(block)].endswith("\n\n")
        assert text[text.index(block) + len(block) :].startswith("\n")
    # The papers' rows stand after everything measured here, with the warning.
    ours, _, papers = text.partition("## The papers' numbers")
    assert NOT_COMPARABLE in papers
    assert "5440" in papers
    assert "5440" not in ours
    assert "gqa4" not in papers
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.split("\n") if not line.startswith("report:"))
    for name in ("mha", "gqa4", "gqa2", "mqa", "nearest", "3,034,368", "±0.0", "2.16x"):
        assert name in shown


def test_measurements_are_found_or_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [synthetic.record(heads) for heads in (8, 1)]
    folder = saved(tmp_path / "runs" / "quickstart", records)
    arguments = ["--records", str(folder), "--out", str(tmp_path / "report")]
    assert main(arguments) == 0
    report = tmp_path / "report" / "report.md"
    assert 'Shown as "not measured"' in report.read_text(encoding="utf-8")
    given = tmp_path / "given"
    write_measurement(given / "one.json", synthetic.measurement(records))
    assert main([*arguments, "--measurements", str(given)]) == 0
    assert "| 2.16x (2.16-2.17) |" in report.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments, "--measurements", str(tmp_path / "absent")]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith(f"error: {tmp_path / 'absent'}: no such folder of measurements (")


def test_the_report_is_written_after_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption leaves no report that names pictures which are not there."""
    groups = [group_of([synthetic.record(8)])]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.report.render.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(groups, read_papers(), tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_the_report_loads_neither_torch_nor_fairseq() -> None:
    """Nor matplotlib, before there is something to draw."""
    code = (
        "import sys, experiments.report.__main__, experiments.report.tables\n"
        "print({'torch', 'fairseq', 'gqa_fairseq.models', 'wandb', 'matplotlib'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


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


# Bad input.


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_no_records_is_one_clear_line(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "report"
    assert main(["--records", str(tmp_path / folder), "--out", str(out)]) == 2
    shown = capsys.readouterr().err.strip()
    assert re.fullmatch(r"error: .* \(run an experiment first.*\)", shown)
    assert not out.exists()


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


def test_an_unwritable_folder_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "records", [synthetic.record(8)])
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bad_record_leaves_the_others_their_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "records", [synthetic.record(8), synthetic.record(1)])
    (folder / "job1" / "record.json").write_text("{", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "report")]) == 2
    assert "job1/record.json: not JSON" in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| mha | 8 |" in text
    assert "job1/record.json: not JSON" in text


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
