"""`experiments.rerun`: which job a record's is, and what is said of its numbers.

Stages are finished ones that lie in their folders; tests/integration/test_rerun.py trains.
"""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic

from experiments import rerun
from experiments.errors import ExperimentError
from experiments.records.measurement import Measurement, write_measurement
from experiments.records.record import Diverged, Record, read_record, write_record
from experiments.rerun import DIFFERENT, Number, job_again, numbers, report, speeds
from experiments.stages.folders import JobFolder, Outcome
from experiments.stages.graph import Job, Stage, job_of

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "results" / "runs" / "quickstart"
replace = msgspec.structs.replace


def committed(variant: str) -> Record:
    (path,) = QUICKSTART.glob(f"{variant}-seed1-*/record.json")
    return read_record(path)


@pytest.mark.parametrize("variant", ["mha", "gqa2", "mqa"])
def test_a_committed_record_names_its_own_job(variant: str, tmp_path: Path) -> None:
    """In other folders, with the threads that it had, and without what it was asked beside."""
    record = committed(variant)
    config = job_again(record, tmp_path)
    assert job_of(config).id == record.job.id
    assert config.paths.runs == str(tmp_path / "runs")
    assert config.paths.data == record.config["paths"]["data"]
    assert config.hardware.threads == record.stages[-1].provenance.threads == 2
    assert config.tracking.mode == "none"
    assert config.data.mirror is None
    assert job_again(record, tmp_path, "corpora").data.mirror == "corpora"


def test_a_config_of_other_code_is_one_line(tmp_path: Path) -> None:
    record = committed("mha")
    config = record.config | {"train": record.config["train"] | {"colour": "red"}}
    with pytest.raises(ExperimentError, match="colour"):
        job_again(replace(record, config=config), tmp_path)


def test_numbers_that_are_the_same_and_how_far_others_are() -> None:
    then = synthetic.record(1)
    assert all(each.verdict == "the same" for each in numbers(then, then))
    assert len(list(numbers(then, then))) == 3 + 6
    evaluation = synthetic.finished(then).evaluation
    scores = [
        replace(s, value=s.value + 0.5) if s.metric == "chrf" else s for s in evaluation.scores
    ]
    now = synthetic.with_evaluation(then, scores=scores)
    differing = {each.name: each.verdict for each in numbers(then, now) if each.then != each.now}
    assert differing == {"test chrF greedy": "+0.5", "test chrF beam4": "+0.5"}
    assert Number("x", 1.0, None, 3).verdict == "not on both sides"


def test_the_report_says_what_may_explain_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    then = synthetic.record(1)
    assert report(then, then)
    assert (
        "9 of 9 numbers are the same, and 2 of 2 files of translations" in capsys.readouterr().out
    )
    made = synthetic.provenance("Other CPU")
    made = replace(made, versions=made.versions | {"torch": "2.11.0"})
    now = synthetic.made_by(synthetic.with_evaluation(then, dev_target_tokens=1), made)
    assert report(then, now)  # the number of tokens is no result
    diverged = synthetic.record(1, diverged_after=100)
    diverged = synthetic.made_by(diverged, made)
    assert not report(then, diverged)
    shown = capsys.readouterr().out
    assert "training finished, now diverged after update 100" in shown
    assert "  prepare, train: made with torch 2.13.0, now 2.11.0\n" in shown
    assert "  prepare, train: made on Synthetic CPU, now Other CPU\n" in shown
    assert "not on both sides" in shown


def test_each_stage_is_set_against_its_own_and_training_has_the_threads_that_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluation alone may have been made again since."""
    now = synthetic.record(1)
    made = synthetic.provenance()
    made = replace(made, code=replace(made.code, digest=synthetic.sha256("old")), threads=7)
    then = synthetic.made_by(now, made, "train")
    scores = synthetic.finished(now).evaluation.scores[1:]
    assert not report(then, synthetic.with_evaluation(now, scores=scores))
    shown = capsys.readouterr().out
    assert shown.count("  train: made by c0ffee0") == 1
    assert "  train: made with 7 threads, now 2\n" in shown
    assert "evaluate: " not in shown
    record = synthetic.made_by(committed("mqa"), made, "train")
    assert job_again(record, tmp_path).hardware.threads == 7


def test_speed_ups_are_set_against_each_other() -> None:
    records = [synthetic.record(heads) for heads in (8, 1)]
    measurement = synthetic.measurement(records)
    lines = list(speeds(measurement, measurement))
    assert len(lines) == 4
    assert lines[0] == (
        "mqa, greedy, batch 64: 128 source and 128 target tokens: 2.16x (2.16-2.17), now 2.16x "
        "(2.16-2.17): the intervals meet"
    )
    slower = [
        replace(
            timing,
            samples=[
                replace(s, total_s=[2 * t for t in s.total_s], encoder_s=s.encoder_s)
                if s.contender.architecture.num_kv_heads == 1 and s.encoder_s
                else s
                for s in timing.samples
            ],
        )
        for timing in measurement.timings
    ]
    other = list(speeds(measurement, replace(measurement, timings=slower)))
    assert other[0].endswith("the intervals do not meet")


@pytest.fixture
def run_again(monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    """What each job is to come out as, by its id, in place of its training."""
    results: dict[str, Record] = {}

    def run(job: Job) -> Outcome:
        if job.id not in results:
            return Outcome(job=job.name, status="failed", message="no memory")
        write_record(JobFolder(job.folder).record_path, results[job.id])
        return Outcome(job=job.name, status="done")

    monkeypatch.setattr(rerun, "run_job", run)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return results


def test_the_command_says_whether_all_numbers_agree(
    run_again: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = committed("mqa")
    (folder,) = QUICKSTART.glob("mqa-seed1-*")
    run_again[record.job.id] = record
    arguments = [str(folder), "--outputs", str(tmp_path / "again")]
    assert rerun.main(arguments) == 0
    assert "numbers are the same" in capsys.readouterr().out
    assert list((tmp_path / "again" / "runs").rglob("record.json"))
    scores = synthetic.finished(record).evaluation.scores
    moved = [replace(scores[0], value=scores[0].value + 1), *scores[1:]]
    run_again[record.job.id] = synthetic.with_evaluation(record, scores=moved)
    assert rerun.main([str(folder / "record.json"), *arguments[1:]]) == DIFFERENT
    assert " +1" in capsys.readouterr().out
    # The first record, for all that is done to it, is as it was.
    assert committed("mqa") == record


def test_a_job_that_fails_and_bad_arguments_are_one_line(
    run_again: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = QUICKSTART.glob("mqa-seed1-*")
    out = ["--outputs", str(tmp_path)]
    for given, message in (
        ([str(folder)], "no memory"),
        ([str(tmp_path / "absent")], "absent: cannot be read"),
        ([str(folder), str(folder)], "two of the records are of one job: give each job once"),
        ([str(QUICKSTART)], "quickstart: no record.json in it (give the folder of a job)"),
        ([], "the following arguments are required: RECORD"),
    ):
        assert rerun.main([*given, *out]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert message in shown.err
        assert shown.err.count("\n") == 1


def test_gpus_that_the_machine_lacks_are_missed_before_anything_is_removed_or_run(
    run_again: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = committed("mqa")
    hardware = record.config["hardware"] | {"device": "cuda", "devices": 4096}
    record = replace(record, config=record.config | {"hardware": hardware})
    write_record(tmp_path / "record.json", record)
    job = job_of(job_again(record, tmp_path))
    run_again[job.id] = record
    kept = job.train.folder / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    arguments = [str(tmp_path / "record.json"), "--again", "--outputs", str(tmp_path)]
    assert rerun.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: hardware.devices=4096 GPUs are wanted, ")
    assert kept.exists()
    assert not JobFolder(job.folder).record_path.exists()


def test_a_measurement_that_is_refused_is_named_before_anything_is_run(
    run_again: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for variant in ("mha", "mqa"):
        record = committed(variant)
        run_again[record.job.id] = record
        paths.append(str(tmp_path / "runs" / "quickstart" / variant / "record.json"))
        write_record(Path(paths[-1]), record)
    bad = tmp_path / "measurements" / "quickstart" / "measurement.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("{")
    out = tmp_path / "again"
    assert rerun.main([*paths, "--outputs", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {bad}: not JSON")
    assert not list(out.rglob("record.json"))


def test_each_group_of_jobs_has_the_speeds_of_its_own_measurement(
    run_again: dict[str, Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = []
    for experiment in ("one", "two"):
        records = []
        for variant in ("mha", "gqa2", "mqa"):
            record = committed(variant)
            config = record.config | {"experiment_name": experiment}
            record = replace(record, config=config, job=replace(record.job, experiment=experiment))
            path = tmp_path / "runs" / experiment / variant / "record.json"
            write_record(path, record)
            paths.append(str(path))
            records.append(record)
        measured = synthetic.measurement(records)
        write_measurement(tmp_path / "measurements" / experiment / "measurement.json", measured)
    asked: list[list[str]] = []

    def measure(stage: Stage, jobs: list[Job]) -> Measurement:
        asked.append([job.architecture.name for job in jobs])
        return synthetic.measurement([r for r in records if r.job.id in [j.id for j in jobs]])

    monkeypatch.setattr(rerun, "measure", measure)
    run_again |= {record.job.id: record for record in records}
    # Of the second experiment one record is asked for, which has no other beside it.
    arguments = [*paths[:4], "--outputs", str(tmp_path / "again")]
    assert rerun.main(arguments) == 0
    shown = capsys.readouterr().out
    assert asked == [["mha", "gqa2", "mqa"]]
    names = ", ".join(record.name for record in records)
    assert f"{names}: decoder speed-up over MHA\n  gqa2, greedy" in shown
    assert f"{records[0].name}: not measured: a speed-up is of several jobs" in shown
    # The others are measured where one has diverged.
    diverged = Diverged(after_update=0, reason="the loss is nan", curve=[])
    run_again[records[2].job.id] = replace(records[2], result=diverged)
    assert rerun.main([*paths, *arguments[4:]]) == DIFFERENT
    shown = capsys.readouterr().out
    assert asked[1:] == [["mha", "gqa2"], ["mha", "gqa2"]]
    assert shown.count(f"{records[2].name}: not measured: its training diverged") == 2
    assert shown.count(": decoder speed-up over MHA\n  gqa2, greedy") == 2
    # Nobody has measured a record that lies elsewhere.
    alone = tmp_path / "elsewhere" / "runs" / "one" / "gqa2" / "record.json"
    for path in (alone, alone.parents[1] / "mha" / "record.json"):
        write_record(path, read_record(tmp_path / "runs" / "one" / path.parent.name / path.name))
        paths.append(str(path))
    assert rerun.main([*paths[-2:], *arguments[4:]]) == 0
    shown = capsys.readouterr().out
    assert "no measurement of all these records lies beside them" in shown


def test_the_help_comes_without_torch() -> None:
    code = (
        "import sys, experiments.rerun\n"
        "print({'torch', 'fairseq', 'wandb', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
