"""The command: the report that it writes, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_records as synthetic
from synthetic_reports import HEADS, group_of

from experiments.records.measurement import MEASUREMENT_NAME, write_measurement
from experiments.records.record import Record, write_record
from experiments.report.__main__ import main
from experiments.report.papers.reference import NOT_COMPARABLE, read_papers
from experiments.report.render import write_report

ROOT = Path(__file__).resolve().parents[2]


def save(folder: Path, records: list[Record]) -> Path:
    for index, record in enumerate(records):
        write_record(folder / f"job{index}" / "record.json", record)
    return folder


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


def test_the_written_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [synthetic.record(heads, seed) for heads in HEADS for seed in (1, 2)]
    other = synthetic.record(1, data_name="multi30k_en_de")
    first = save(tmp_path / "a", records)
    beside = tmp_path / "measurements" / "sweep" / MEASUREMENT_NAME
    write_measurement(beside, synthetic.measurement([*records, other]))
    second = save(tmp_path / "b", [other, records[0]])
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
    folder = save(tmp_path / "runs" / "quickstart", records)
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


def test_a_bad_record_leaves_the_others_their_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "records", [synthetic.record(8), synthetic.record(1)])
    (folder / "job1" / "record.json").write_text("{", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "report")]) == 2
    assert "job1/record.json: not JSON" in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| mha | 8 |" in text
    assert "job1/record.json: not JSON" in text


def test_an_unwritable_folder_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "records", [synthetic.record(8)])
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
