"""The summary of a sweep in wandb, and the saved view of a project."""

import statistics
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_records import comparison
from wandb_files import all_runs

from experiments.records.measurement import write_measurement
from experiments.records.record import Record, write_record
from experiments.records.significance import write_comparison
from experiments.report.groups import Group, group_records
from experiments.report.quality.comparisons import pairs
from experiments.report.quality.statistics import t_quantile
from experiments.tracking.__main__ import main
from experiments.tracking.keys import curve, speed_summary, summary
from experiments.tracking.means import TABLE, differences_of_seeds, means
from experiments.tracking.runs import PROJECT
from experiments.tracking.workspace import make_workspace

replace = msgspec.structs.replace


@pytest.fixture
def records() -> dict[tuple[int, int], Record]:
    """By key/value heads and seed."""
    return {(heads, seed): synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2, 3)}


def group_of(records: Mapping[Any, Record]) -> Group:
    """All of them, measured, with MQA tested against MHA on test with both searches."""
    measurement = synthetic.measurement(list(records.values()))
    [plain] = group_records(records.values())
    made = [comparison(pair, -0.4, 0.2) for table in pairs(plain) for pair in table]
    [group] = group_records(records.values(), [measurement], {each.key: each for each in made})
    assert len(made) == 2
    return group


def test_means_have_the_interval_of_their_seeds(records: dict[tuple[int, int], Record]) -> None:
    rows = means(group_of(records))
    assert list(rows) == ["mha", "mqa"]
    for heads, variant in ((8, "mha"), (1, "mqa")):
        row = rows[variant]
        assert row["runs"] == 3
        for key in ("dev/nll_nats_per_token", "test/bleu_beam4", "test/chrf_greedy"):
            values = [summary(records[heads, seed])[key] for seed in (1, 2, 3)]
            half = t_quantile(0.95, 2) * statistics.stdev(values) / 3**0.5
            mean = statistics.fmean(values)
            assert row[key] == pytest.approx(mean)
            assert (row[f"{key}_low"], row[f"{key}_high"]) == pytest.approx(
                (mean - half, mean + half)
            )
        assert not [key for key in row if "baseline" in key or key.startswith("train/")]
    assert rows["mqa"]["test/bleu_beam4_difference"] == pytest.approx(-0.1)
    assert rows["mqa"]["test/bleu_beam4_difference_low"] == -0.5
    assert rows["mqa"]["test/bleu_beam4_difference_lower_bound"] == -0.4
    assert "test/bleu_beam4_difference" not in rows["mha"]
    assert rows["mqa"]["decode/speed_up_beam4"] > 1


def test_one_seed_has_no_interval() -> None:
    records = {heads: synthetic.record(heads) for heads in (8, 1)}
    row = means(group_of(records))["mha"]
    assert row["test/bleu_beam4"] == summary(records[8])["test/bleu_beam4"]
    scores = [key for key in row if key.startswith(("dev/", "test/"))]
    assert scores
    assert not [key for key in scores if key.endswith(("_low", "_high"))]


def test_each_run_has_its_own_tests(records: dict[tuple[int, int], Record]) -> None:
    found = differences_of_seeds(group_of(records))
    assert set(found) == {records[1, seed].job.id for seed in (1, 2, 3)}
    for values in found.values():
        assert values["test/bleu_beam4_difference"] == pytest.approx(-0.1)
        assert values["test/chrf_greedy_difference_p"] == 0.04


def test_the_command_logs_tests_and_sums_the_sweep_up(
    records: dict[tuple[int, int], Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many of the runs are asked for, the summary is of all."""
    group = group_of(records)
    for record in records.values():
        write_record(tmp_path / "runs/sweep" / record.name / "record.json", record)
    assert group.measurement is not None
    write_measurement(tmp_path / "measurements/sweep/measurement.json", group.measurement)
    for each in group.comparisons.values():
        write_comparison(tmp_path / "tests", each)
    mqa = records[1, 2]
    asked = ["--records", str(tmp_path / "runs/sweep"), "--dir", str(tmp_path / "out")]
    assert main([*asked, "--only", mqa.name]) == 0
    capsys.readouterr()
    one, sweep = all_runs(tmp_path / "out")
    assert (one["name"], one["job_type"], one["group"]) == (mqa.name, "job", "synthetic")
    expected = speed_summary(group.measurement, mqa.job.id)
    expected |= differences_of_seeds(group)[mqa.job.id]
    assert expected.items() <= one["summary"].items()

    assert (sweep["name"], sweep["job_type"], sweep["group"]) == (
        "synthetic-summary",
        "sweep",
        "synthetic",
    )
    assert sweep["project"] == PROJECT
    rows = means(group)
    columns, table = sweep["tables"][TABLE]
    assert [row[0] for row in table] == list(rows)
    for name, *row in table:
        found = dict(zip(columns[1:], row, strict=True))
        assert {key: value for key, value in found.items() if value is not None} == rows[name]
        for key, value in rows[name].items():
            assert sweep["summary"][f"{name}/{key}"] == value

    # A sweep that has grown has the same summary, made anew.
    more = synthetic.record(2)
    write_record(tmp_path / "runs/sweep" / more.name / "record.json", more)
    assert main([*asked, "--only", more.name]) == 0
    grown = all_runs(tmp_path / "out")[-1]
    assert grown["id"] == sweep["id"]
    assert len(grown["tables"][TABLE][1]) == 3

    assert main([*asked, "--only", "nobody"]) == 2
    assert capsys.readouterr().err.endswith("no record of nobody in it\n")


def test_a_damaged_file_is_named_and_the_others_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = synthetic.record(8), synthetic.record(1)
    for record in (good, bad):
        write_record(tmp_path / "runs" / record.name / "record.json", record)
    path = tmp_path / "runs" / bad.name / "record.json"
    path.write_bytes(path.read_bytes()[:100])
    measured = tmp_path / "measurements" / "bad.json"
    measured.parent.mkdir()
    measured.write_text("{}")
    asked = ["--records", str(tmp_path / "runs"), "--mode", "none"]
    assert main(asked) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{good.name}: none\n"
    first, second = shown.err.splitlines()
    assert first.startswith(f"error: left out: {path}: not JSON")
    assert second.startswith(f"error: left out: {measured}: ")
    good_path = tmp_path / "runs" / good.name / "record.json"
    good_path.unlink()
    assert main(asked) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("no record.json in it that can be read (run an experiment)")


def test_each_experiment_has_the_tests_of_its_own_of_a_job_that_they_share(
    records: dict[tuple[int, int], Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[tuple[str, str], Any] = {}

    def log(record: Record, *_: object, more: Mapping[str, float], **__: object) -> None:
        logged[record.job.experiment, record.name] = more

    monkeypatch.setattr("experiments.tracking.__main__.log_record", log)
    for experiment, seeds in (("short", (1,)), ("whole", (1, 2, 3))):
        own = {
            (heads, seed): replace(record, job=replace(record.job, experiment=experiment))
            for (heads, seed), record in records.items()
            if seed in seeds
        }
        for record in own.values():
            write_record(tmp_path / "runs" / experiment / record.name / "record.json", record)
        [plain] = group_records(own.values())
        for pair in chain.from_iterable(pairs(plain)):
            made = comparison(pair, -0.1 * len(seeds), 0.2)
            write_comparison(tmp_path / "tests", made)
    assert main(["--records", str(tmp_path / "runs"), "--mode", "none"]) == 0
    name = records[1, 1].name
    differences = [logged[each, name]["test/bleu_beam4_difference"] for each in ("short", "whole")]
    assert differences == pytest.approx([0.05, -0.05])


class Made(SimpleNamespace):
    """What the view is made of, in the place of wandb-workspaces' own classes."""


def test_the_view_shows_keys_that_runs_have() -> None:
    record = synthetic.record()
    known = set(summary(record)) | {TABLE, "test/hypotheses", "train/grad_norm"}
    known |= set(speed_summary(synthetic.measurement([record]), record.job.id))
    known |= {key for _, values in curve(record.result.curve) for key in values}
    package = SimpleNamespace(
        Workspace=Made, Section=Made, ScatterPlot=Made, LinePlot=Made, WeavePanelSummaryTable=Made
    )
    view = make_workspace(package, package, "somebody", PROJECT)
    assert (view.entity, view.project) == ("somebody", PROJECT)
    scatters, curves, tables = (section.panels for section in view.sections)
    assert (scatters[0].x, scatters[0].y) == ("decode/us_per_token_beam4", "test/bleu_beam4")
    assert {panel.groupby for panel in curves} == {"variant"}
    shown = [key for panel in scatters for key in (panel.x, panel.y)]
    shown += [key for panel in curves for key in panel.y]
    shown += [panel.table_name for panel in tables]
    assert set(shown) <= known
    assert len(shown) == len(set(shown)) == 11


def test_the_view_is_one_that_the_package_can_save() -> None:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    saved = make_workspace(workspaces, reports, "somebody", PROJECT)._to_model()
    text = saved.model_dump_json(by_alias=True)
    assert "summary:decode/us_per_token_beam4" in text
    assert "variant.value" in text


def test_a_missing_package_is_one_line_that_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["workspace"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: the view needs wandb-workspaces: run "
        f"{sys.executable} -m pip install wandb-workspaces\n"
    )


def test_a_missing_account_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setattr("experiments.tracking.workspace.has_account", lambda: False)
    assert main(["workspace"]) == 2
    said = capsys.readouterr().err
    assert said == "error: the view lies on wandb's server (run `wandb login` first)\n"
