"""The report's section for each card that was asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from card_records import case_of, measurement_of, stamp, timing_of_decoding
from msgspec.structs import replace
from synthetic_reports import make, save

from experiments.card.models import Asked
from experiments.records.card import (
    AtATime,
    AttentionCases,
    Check,
    Checks,
    KernelTime,
    PartEnd,
    Profiles,
    SearchProfile,
    SideBySide,
    Summary,
)
from experiments.records.measurement import write_measurement
from experiments.records.storage import write_json

ASKED = Asked("cpu", Path(), 1.0, 1)
FOLDER = Path("results/measurements/gpu/a-card")


def of_card() -> dict[str, Any]:
    """As on a card, which this machine lacks."""
    found = stamp(ASKED)
    made = found["provenance"]
    hardware = replace(made.hardware, gpus=["A card"])
    versions = made.versions | {"nvidia-driver": "570.1"}
    made = replace(made, hardware=hardware, versions=versions)
    return found | {"provenance": made, "device": "cuda", "dtype": "bfloat16"}


def write_card(folder: Path) -> None:
    """A record of each kind. Decoders take 4 s and 2 s, and stock fairseq 20 s in all."""
    measured = measurement_of(ASKED, timing_of_decoding())
    write_measurement(folder / "decoding.json", replace(measured, **of_card()))
    search = SearchProfile(
        beam=4, num_kv_heads=1, steps=3, wall_s=2.0, device_s=1.0,
        kernels=[
            KernelTime(name="small", calls=3, device_s=0.25),
            KernelTime(name="gemm", calls=6, device_s=0.75),
        ],
    )  # fmt: skip
    rates = [AtATime(trainings=1, updates_per_s=[2.0]), AtATime(trainings=4, updates_per_s=[5.0])]
    checks = [Check(name="test_right", outcome="passed"), Check(name="test_x", outcome="failed")]
    cases = [case_of(own=1e-6, sdpa=2e-6), case_of(sdpa=2e-6)]
    records = {
        "correctness": Checks(**of_card(), checks=checks),
        "kernels": AttentionCases(**of_card(), read_bytes_per_s=[1.0], cases=cases),
        "seeds": SideBySide(**of_card(), parameters=1000, tokens_per_update=64, rates=rates),
        "profile": Profiles(**of_card(), searches=[search]),
    }
    ends = [
        PartEnd(**of_card(), part="decoding", outcome="done", wall_s=9.0, found="4.0 x stock (5)")
    ]
    for name, record in records.items():
        write_json(folder / f"{name}.json", record)
        ends.append(PartEnd(**of_card(), part=name, outcome="done", wall_s=7.0, found=record.found))
    write_json(folder / "summary.json", Summary(parts=ends))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    save(tmp_path / "results/runs/e", synthetic.record(8), synthetic.record(1))
    (tmp_path / "results/tests").mkdir()
    write_card(tmp_path / FOLDER)
    return tmp_path


def test_each_card_has_a_section(
    results: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(results, monkeypatch=monkeypatch) == 0
    report = (results / "results/report/report.md").read_text(encoding="utf-8")
    section = report.split("## On a GPU: A card\n")[1].split("\n## ")[0]
    assert "| decoding | done | 4.0 x stock (5) | 9 |" in section
    assert re.search(r"A card, nvidia-driver 570.1, torch \S+, .*bfloat16; commit", section)
    # The decoders take 4 s and 2 s, with the encoder 5 s and 3 s.
    assert re.search(r"\| mqa \| gqa \| .* 2\.00 \(.*\) / 1\.67 \(", section)
    assert "| test_x | failed |" in section
    assert "test_right" not in section
    assert "| self, batch 1, beam 1, G = 1, 3 slots | sdpa | 1.0 | 2.0 | 2.00 |" in section
    assert "| self, batch 1, beam 1, G = 1, 3 slots | sdpa | – | 2.0 | – |" in section
    assert "| 4 | 5.0 | 2.50 |" in section
    assert section.index("| gemm | 6 | 750.00 | 75% |") < section.index("| small | 3 |")
    page = (results / "results/report/index.html").read_text(encoding="utf-8")
    assert '<a href="#card-1">A card</a>' in page
    assert '<a href="../measurements/gpu/a-card/decoding.json">decoding.json</a>' in page


def test_a_damaged_file_of_a_card_leaves_the_others(
    results: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (results / FOLDER / "seeds.json").write_text('{"schema_version": 1', encoding="utf-8")
    assert make(results, monkeypatch=monkeypatch) == 2
    assert "left out: results/measurements/gpu/a-card/seeds.json: " in capsys.readouterr().err
    report = (results / "results/report/report.md").read_text(encoding="utf-8")
    assert "Where the time goes: beam 4, G = 1" in report
    assert "Trainings of the study's model" not in report
