"""A job goes through its stages: what is done is used, and an outcome says how it ended.

The stages are finished ones that lie in their folders, or fail in processes of their own.
"""

import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import msgspec
import pytest
from finished_stages import (
    CHECKSUM,
    HYPOTHESES,
    diverge,
    finish_conversion,
    finish_data,
    finish_evaluation,
    finish_training,
    finish_uptraining,
)
from hydra import compose, initialize_config_dir
from kept_results import read_records
from suite_configs import ROOT, changed, smoke_config

from experiments.config import SuiteConfig, parse_config
from experiments.errors import ExperimentError
from experiments.records.hypotheses import hypotheses_digest, read_hypotheses
from experiments.records.parts import Uptraining
from experiments.records.record import Diverged, Finished, Record
from experiments.records.storage import read_json, write_json
from experiments.stages import sweep
from experiments.stages.folders import RESULT_NAME, JobFolder, Outcome
from experiments.stages.graph import Job, job_of, plan
from experiments.stages.job import run_job


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """A job of real text, whose data is prepared once for all tests."""
    config = smoke_config(tmp_path_factory.mktemp("prepared"))
    finish_data(job_of(config))
    return config


@pytest.fixture
def config(prepared: SuiteConfig, tmp_path: Path) -> SuiteConfig:
    folders = ("stages", "runs", "measurements", "report")
    return changed(prepared, {f"paths.{name}": f"{tmp_path}/outputs/{name}" for name in folders})


@pytest.fixture
def job(config: SuiteConfig) -> Job:
    return job_of(config)


@pytest.fixture
def finished(job: Job) -> Job:
    """All of its stages are finished; it has no record yet."""
    finish_training(job)
    finish_evaluation(job)
    return job


def record_of(job: Job) -> Record:
    [record] = read_records(Path(job.config.paths.runs))
    assert record == JobFolder(job.folder).record()
    return record


def outcome_of(job: Job) -> Outcome:
    return read_json(JobFolder(job.folder).outcome_path, Outcome)


def test_finished_stages_make_a_record(finished: Job) -> None:
    outcome = run_job(finished)
    assert outcome == outcome_of(finished) == Outcome(job=finished.name, status="done")
    assert outcome.has_model
    record = record_of(finished)
    assert isinstance(record.result, Finished)
    assert parse_config(record.config) == finished.config
    assert record.name == finished.name == finished.folder.name
    assert record.architecture == finished.config.architecture
    assert record.commands["train"][0] == "fairseq-train"
    assert record.data.checksum == CHECKSUM
    assert [(stage.name, stage.key) for stage in record.stages] == [
        ("train", finished.train.key),
        ("evaluate", finished.evaluate.key),
    ]
    assert record.job.id == finished.evaluate.key
    assert record.job.wall_s == 7.0 + 7.0


def test_a_record_does_not_say_where_downloads_lay(finished: Job) -> None:
    config = changed(finished.config, {"data.mirror": "/home/somebody/corpora"})
    job = job_of(config)
    assert job.folder == finished.folder
    run_job(job)
    assert record_of(job).config["data"]["mirror"] is None


@pytest.fixture
def uptrained(config: SuiteConfig) -> SuiteConfig:
    """MQA out of MHA, with points after 3 and 6 of 12 updates more."""
    return changed(config, {
        "attention.num_kv_heads": 1,
        "attention.d_ff": "kept",
        "uptrain.method": "mean",
        "uptrain.points": [0.25, 0.5],
        "uptrain.alpha": 0.5,
    })  # fmt: skip


@pytest.mark.parametrize(("alpha", "updates"), [(0.0, 0), (0.25, 3), (0.5, 6)])
def test_an_uptrained_model_has_a_record_that_says_so(
    uptrained: SuiteConfig, alpha: float, updates: int
) -> None:
    job = job_of(changed(uptrained, {"uptrain.alpha": alpha}))
    finish_training(job)
    finish_conversion(job)
    more = finish_uptraining(job) if alpha else None
    finish_evaluation(job)
    assert run_job(job).status == "done"
    record = record_of(job)
    assert record.uptraining == Uptraining(
        method="mean", alpha=alpha, parent_updates=12, updates=updates, parent=job.train.key
    )
    assert record.name == job.name == f"mqa-ff64-mean-{alpha:g}-seed1-{job.id[:12]}"
    assert record.architecture == job.architecture
    names = ["train", "convert", *(["uptrain"] if alpha else []), "evaluate"]
    assert [(stage.name, stage.key) for stage in record.stages] == [
        (stage.name, stage.key) for stage in job.stages[1:]
    ]
    assert [stage.name for stage in record.stages] == names
    assert set(record.commands) == set(names[:-1])
    assert record.commands["convert"][:2] == ["python", "-m"]  # whose interpreter is no matter
    at = next((point for point in more.points if point.alpha == alpha), None) if more else None
    assert record.training == (at.training if at else None)
    checkpoint = f"uptrained_{updates}.pt" if alpha else "converted.pt"
    inside = JobFolder(job.folder)
    assert inside.checkpoint() == job.model.folder / "checkpoints" / checkpoint
    assert inside.data().path == job.prepare.folder
    assert run_job(job).status == "skipped"


def test_a_parent_that_diverged_is_the_result_of_who_wants_it(uptrained: SuiteConfig) -> None:
    job = job_of(uptrained)
    diverged = diverge(job)
    assert run_job(job).status == "diverged"
    record = record_of(job)
    assert record.result == diverged
    assert [stage.name for stage in record.stages] == ["train"]
    assert record.uptraining is not None
    with pytest.raises(ExperimentError, match="its model is not finished: there is no "):
        JobFolder(job.folder).checkpoint()


def test_a_point_before_a_divergence_is_a_model(uptrained: SuiteConfig) -> None:
    jobs = [job_of(changed(uptrained, {"uptrain.alpha": alpha})) for alpha in (0.25, 0.5)]
    finish_training(jobs[0])
    finish_conversion(jobs[0])
    ended = Diverged(after_update=4, reason="the loss at update 17 is nan", curve=[])
    finish_uptraining(jobs[0], diverged=ended)
    finish_evaluation(jobs[0])
    assert [run_job(job).status for job in jobs] == ["done", "diverged"]
    assert JobFolder(jobs[1].folder).record().result == ended
    assert JobFolder(jobs[0].folder).record().training.updates == 3
    with pytest.raises(ExperimentError, match="diverged after update 4, so it has no model"):
        JobFolder(jobs[1].folder).checkpoint()


@pytest.mark.parametrize(
    ("rerun", "kept"),
    [
        ("convert", {"train"}),
        ("uptrain", {"train", "convert"}),
        ("evaluate", {"train", "convert", "uptrain"}),
        ("train", set()),
    ],
)
def test_rerun_forgets_a_stage_of_an_uptraining_and_what_depends_on_it(
    uptrained: SuiteConfig, rerun: str, kept: set[str]
) -> None:
    job = job_of(uptrained)
    for finish in (finish_training, finish_conversion, finish_uptraining, finish_evaluation):
        finish(job)
    run_job(job)
    sweep.start([changed(uptrained, {"rerun": rerun})])
    left = {stage.name for stage in job.stages[1:] if (stage.folder / RESULT_NAME).exists()}
    assert left == kept
    assert not JobFolder(job.folder).record_path.exists()


def test_translations_lie_with_the_record(finished: Job) -> None:
    folder = JobFolder(finished.folder)
    stale = folder.hypotheses / "stale.txt.xz"
    stale.parent.mkdir(parents=True)
    stale.touch()
    run_job(finished)
    digest = hypotheses_digest(HYPOTHESES.lines)
    assert {score.hypotheses_sha256 for score in record_of(finished).evaluation.scores} == {digest}
    assert read_hypotheses(folder.hypotheses, digest) == HYPOTHESES
    assert not stale.exists()


def test_a_job_with_its_record_is_skipped(
    finished: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(finished)
    before = JobFolder(finished.folder).record_path.read_bytes()
    capsys.readouterr()
    # Its stages may be gone: the record is all that is left of many a job.
    shutil.rmtree(finished.config.paths.stages)
    assert run_job(finished) == Outcome(job=finished.name, status="skipped")
    assert JobFolder(finished.folder).record_path.read_bytes() == before
    assert f"{finished.name}: has its record, skipped\n" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["", '{"schema_version": 2', '{"schema_version": 1}'])
def test_a_record_that_cannot_be_read_is_made_again(
    finished: Job, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    run_job(finished)
    record, path = record_of(finished), JobFolder(finished.folder).record_path
    path.write_text(left, encoding="utf-8")
    capsys.readouterr()
    assert run_job(finished).status == "done"
    assert record_of(finished) == record
    printed = capsys.readouterr().err
    assert printed.count(f"{path}: ") == 1
    assert "it is made again" in printed


def test_a_diverged_training_is_a_result(job: Job) -> None:
    diverged = diverge(job)
    expected = Outcome(job=job.name, status="diverged", message="training diverged after update 0")
    for _ in range(2):  # and stays one
        assert run_job(job) == outcome_of(job) == expected
        record = record_of(job)
        assert record.result == diverged
        assert isinstance(record.result, Diverged)
        assert [stage.name for stage in record.stages] == ["train"]
    assert not expected.has_model
    assert not job.evaluate.folder.exists()
    with pytest.raises(ExperimentError, match="diverged after update 0, so it has no model"):
        JobFolder(job.folder).checkpoint()


def test_a_stage_that_fails_is_an_outcome_and_what_was_done_stays(job: Job) -> None:
    """The checkpoint here is none, which the evaluation's own process says."""
    finish_training(job)
    outcome = run_job(job)
    assert outcome == outcome_of(job)
    assert outcome.status == "failed"
    assert outcome.message.startswith("evaluate failed: ")
    assert "\n" not in outcome.message
    assert read_records(Path(job.config.paths.runs)) == []
    assert (job.train.folder / RESULT_NAME).exists()
    finish_evaluation(job)
    assert run_job(job).status == "done"


def test_data_that_cannot_be_prepared_fails_its_own_job_alone(
    config: SuiteConfig, finished: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    other = job_of(changed(config, {"data.vocab_size": 201}))
    other.prepare.folder.mkdir(parents=True)
    (other.prepare.folder / "a file of the user's").touch()
    [first, second] = [run_job(job) for job in (other, finished)]
    assert first.status == "failed"
    assert first.message == "the data could not be prepared: its message is above"
    assert second.status == "done"
    assert "holds other files" in capfd.readouterr().err


def test_a_fault_of_the_code_fails_the_job_with_its_traceback(
    finished: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(finished.evaluate.folder / "hypotheses")  # which no stage leaves like this
    outcome = run_job(finished)
    assert outcome.status == "failed"
    assert outcome.message.startswith("FileNotFoundError: ")
    assert "Traceback" in capsys.readouterr().err


def test_a_model_of_other_data_is_refused(job: Job) -> None:
    finish_training(job, data_checksum="1" * 64)
    finish_evaluation(job)
    outcome = run_job(job)
    assert outcome.status == "failed"
    assert f"train {job.train.folder.name} was made with 111111111111" in outcome.message
    assert read_records(Path(job.config.paths.runs)) == []


def test_a_runs_folder_that_cannot_be_written_is_an_outcome(finished: Job) -> None:
    Path(finished.config.paths.runs).write_text("a file", encoding="utf-8")
    outcome = run_job(finished)
    assert outcome.status == "failed"
    assert "cannot be written" in outcome.message


def test_outputs_can_be_moved(
    config: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = with_own_data(config, tmp_path)
    run_job(finished)
    inside = JobFolder(finished.folder)
    checkpoint, binarized = inside.checkpoint(), inside.data().binarized
    assert checkpoint == finished.train.folder / "checkpoints/checkpoint_last.pt"
    assert binarized == finished.prepare.folder / "bin"
    (tmp_path / "outputs").rename(tmp_path / "moved")
    relative = finished.folder.relative_to(tmp_path / "outputs")
    moved = JobFolder(tmp_path / "moved" / relative)
    monkeypatch.chdir(moved.path)
    for folder in (moved, JobFolder(Path("."))):
        assert folder.checkpoint() == tmp_path / "moved" / checkpoint.relative_to(
            tmp_path / "outputs"
        )
        assert folder.data().binarized.is_dir()
        assert folder.config() == finished.config


def with_own_data(config: SuiteConfig, folder: Path) -> Job:
    """A job whose stages are finished, its data among them."""
    shutil.copytree(config.paths.data, folder / "outputs/data")
    job = job_of(changed(config, {"paths.data": f"{folder}/outputs/data"}))
    finish_training(job)
    finish_evaluation(job)
    return job


def test_commands_on_a_job_refuse_other_data(config: SuiteConfig, tmp_path: Path) -> None:
    finished = with_own_data(config, tmp_path)
    run_job(finished)
    manifest = finished.prepare.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(CHECKSUM, "1" * 64))
    with pytest.raises(ExperimentError, match="this data has the checksum 111111111111"):
        JobFolder(finished.folder).data()


def test_what_is_no_jobs_folder_is_refused(tmp_path: Path) -> None:
    for ask in (JobFolder(tmp_path).model, JobFolder(tmp_path).data, JobFolder(tmp_path).config):
        with pytest.raises(ExperimentError) as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rerun", "kept"),
    [
        (None, {"train", "evaluate", "record"}),
        ("measure", {"train", "evaluate", "record"}),
        ("evaluate", {"train"}),
        ("train", set()),
    ],
)
def test_rerun_forgets_a_stage_and_what_depends_on_it(
    finished: Job, rerun: str | None, kept: set[str]
) -> None:
    run_job(finished)
    _, stages = plan([finished.config])
    results = {stage.name: stage.folder / RESULT_NAME for stage in stages}
    results["measure"].parent.mkdir(parents=True)
    results["measure"].touch()
    jobs = sweep.start([changed(finished.config, {"rerun": rerun})])
    assert [job.id for job in jobs] == [finished.id]
    folder = JobFolder(finished.folder)
    results["record"] = folder.record_path
    assert {n for n in ("train", "evaluate", "record") if results[n].exists()} == kept
    assert results["measure"].exists() == (rerun in (None, "evaluate"))
    assert (finished.prepare.folder / "manifest.json").exists()
    assert not folder.outcome_path.exists()  # of the last time


def test_evaluating_again_trains_no_model(finished: Job) -> None:
    run_job(finished)
    before = record_of(finished)
    [job] = sweep.start([changed(finished.config, {"rerun": "evaluate"})])
    finish_evaluation(finished, nll=4.9)
    assert run_job(job).status == "done"
    after = record_of(finished)
    assert after.training == before.training
    assert after.evaluation.dev_nll_nats_per_token == 4.9


def test_a_sweep_ends_with_an_error_where_a_job_failed_or_left_no_outcome(job: Job) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep.finish([job], is_sweep=True)
    assert ended.value.code == 2
    assert sweep.read_outcome(job) == Outcome(
        job=job.name, status="failed", message="it left no outcome"
    )


def test_a_job_that_failed_in_one_of_two_experiments_is_not_taken_for_done(
    config: SuiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, _ = plan([changed(config, {"experiment_name": name}) for name in ("a", "b")])
    for job, status in zip(jobs, ("failed", "done"), strict=True):
        write_json(JobFolder(job.folder).outcome_path, Outcome(job=job.name, status=status))
    seen: list[list[Job]] = []
    monkeypatch.setattr(sweep, "measurements_of", lambda trained: seen.append(trained) or [])
    monkeypatch.setattr(sweep, "_report", lambda _: 0)
    with pytest.raises(SystemExit) as ended:
        sweep.finish(jobs, is_sweep=True)
    assert ended.value.code == 2
    assert seen == [jobs[1:]]


def test_a_report_is_given_the_tests_where_there_are_some(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> CompletedProcess[str]:
        commands.append(command)
        return CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)
    tests = Path(job.config.paths.runs).parent / "tests"
    assert sweep._report([job]) == 0
    tests.mkdir(parents=True)
    assert sweep._report([job]) == 0
    reports = [command for command in commands if "experiments.report" in command]
    assert [str(tests) in command for command in reports] == [False, True]


def test_a_sweep_whose_jobs_diverged_has_nothing_to_measure_and_no_error(job: Job) -> None:
    diverge(job)
    run_job(job)
    sweep.finish([job], is_sweep=True)
    assert not Path(job.config.paths.measurements).exists()


def test_what_fails_around_the_jobs_ends_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra would print a warning, and the command would end with 0."""
    runs = tmp_path / "runs"
    runs.write_text("a file", encoding="utf-8")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("suite", overrides=["experiment=quickstart", f"paths.runs={runs}"])
    with pytest.raises(SystemExit) as ended:
        sweep.SweepCallback().on_run_start(config)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert str(runs) in printed
    assert printed.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        sweep.SweepCallback().on_run_end(config)  # without its start: a fault of the code
    assert ended.value.code == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_screen_sums_up_a_job(finished: Job, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(finished)
    [last] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert last == (
        f"{finished.name}: dev 5.100 nats/token, test BLEU 12.5 (greedy), 12.5 (beam4); "
        f"{JobFolder(finished.folder).record_path}"
    )


def test_a_language_whose_tokenizer_is_missing_is_refused_before_any_work(
    config: SuiteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)
    with pytest.raises(ExperimentError, match=r"pip install 'sacrebleu\[ja\]'"):
        sweep.start([config, changed(config, {"data.target_lang": "ja"})])
    assert not (tmp_path / "outputs").exists()


def test_an_outcome_is_strict() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"job": "x", "status": "lost"}', type=Outcome)
