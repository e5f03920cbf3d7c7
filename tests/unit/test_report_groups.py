"""What stands together in the report, what stands apart, and what made it."""

import dataclasses
import math
from collections.abc import Callable

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_reports import cells, group_of

from experiments.records.parts import Hardware
from experiments.records.record import Record
from experiments.report.answers import scale
from experiments.report.document import document, group_heading
from experiments.report.groups import group_records, source_of
from experiments.report.made_by import made_by
from experiments.report.papers.reference import read_papers
from experiments.report.tables import group_tables, overview, training

replace = msgspec.structs.replace


# What stands together.


def test_trainings_that_do_not_name_their_implementation_are_fairseqs() -> None:
    old = synthetic.record(8)
    assert "implementation" not in old.config["train"]

    def named(implementation: str) -> Record:
        config = old.config | {"train": {**old.config["train"], "implementation": implementation}}
        return msgspec.structs.replace(synthetic.record(1), config=config)

    assert len(group_records([old, named("fairseq")])) == 1
    assert len(group_records([old, named("gqa")])) == 2


def other_data(record: Record) -> Record:
    return replace(record, data=replace(record.data, checksum=synthetic.sha256("other")))


def other_config(name: str, **values: object) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        return replace(record, config=record.config | {name: record.config[name] | values})

    return change


@pytest.mark.parametrize(
    "change",
    [
        other_data,
        other_config("train", max_updates=601),
        other_config("model", mha_d_ff=1024),
        other_config("decode", engine="stock"),
        other_config("hardware", precision="bf16"),
        other_config("hardware", devices=8),
        other_config("hardware", max_tokens_per_device=100),
    ],
)
def test_what_cannot_be_compared_stands_apart(change: Callable[[Record], Record]) -> None:
    records = [synthetic.record(8), change(synthetic.record(1))]
    groups = group_records(records)
    assert [[row.name for row in group.rows] for group in groups] == [["mha"], ["mqa"]]


def test_a_heading_names_the_options_of_a_search() -> None:
    options = {"no_repeat_ngram_size": 3}
    records = [synthetic.record(8), other_config("decode", options=options)(synthetic.record(8))]
    plain, told = (group_heading(group) for group in group_records(records))
    assert told == f"{plain}, no_repeat_ngram_size 3"


def test_how_a_job_is_named_kept_and_shown_does_not_matter() -> None:
    plain = synthetic.record(1)
    names = {"tracking": {"mode": "offline"}, "paths": {"runs": "x"}, "experiment_name": "x"}
    named = replace(plain, config=plain.config | names | {"rerun": "train", "seed": 2}, seed=2)
    (group,) = group_records([plain, named])
    assert [record.seed for record in group.rows[0].records] == [1, 2]


def test_where_several_machines_met_does_not_matter_what_they_are_does() -> None:
    def on(**hardware: object) -> Record:
        record = synthetic.record(1, seed=len(hardware))
        return replace(record, config=record.config | {"hardware": {"devices": 1} | hardware})

    one, other = on(master="a:1", node_rank=0), on(master="b:2", device="cuda", threads=7)
    assert len(group_records([one, other])) == 1
    assert len(group_records([one, on(devices=8)])) == 2


def test_how_speed_is_measured_does_not_matter() -> None:
    one, other = synthetic.record(8), synthetic.record(1)
    other = replace(other, config=other.config | {"measure": {"repeats": 9}})
    assert len(group_records([one, other])) == 1


def test_placements_and_widths_are_rows_of_their_own() -> None:
    records = [
        synthetic.record(4),
        synthetic.record(4, placement="decoder"),
        synthetic.record(4, d_ff="kept"),
    ]
    group = group_of(records)
    assert [row.name for row in group.rows] == ["gqa4", "gqa4-ff768", "gqa4-dec"]
    widths = {name: row["d_ff enc / dec"] for name, row in cells(overview(group)).items()}
    assert widths["gqa4"] == "912 / 912"
    assert widths["gqa4-ff768"] == "768 / 768"


def test_a_row_never_mixes_uptrained_models_and_models_from_scratch() -> None:
    """At the same heads and widths, and though the kept width is MHA's own."""
    scratch = [synthetic.record(heads, d_ff="kept") for heads in (8, 1)]
    uptrained = [
        synthetic.record(heads, seed, uptrained=how)
        for heads in (8, 1)
        for how in (("mean", 0.0), ("mean", 0.1), ("svd", 0.1))
        for seed in (1, 2)
    ]
    [group] = group_records([*scratch, *uptrained])
    assert [(row.name, len(row.records)) for row in group.rows] == [
        (f"{name}{how}", 2 if how else 1)
        for name in ("mha", "mqa-ff768")
        for how in ("", "-mean-0", "-mean-0.1", "-svd-0.1")
    ]
    [cells] = [row for row in training(group).rows if row[0] == "mqa-ff768-mean-0"]
    assert cells[1:] == ["not run", "not run", "not measured", "not run", "not run"]
    # A checkpoint that no job trained has a recipe that no config knows.
    foreign = replace(uptrained[0], stages=[s for s in uptrained[0].stages if s.name != "train"])
    assert len(group_records([*scratch, foreign])) == 2


def test_of_a_repeated_run_the_newest_counts() -> None:
    old = synthetic.record(8)
    newer = synthetic.with_evaluation(old, dev_nll_nats_per_token=1.0, dev_perplexity=math.exp(1.0))
    started = old.job.started_utc.replace(year=2027)
    newer = replace(newer, job=replace(newer.job, started_utc=started))
    (group,) = group_records([newer, old, old])
    assert group.repeats_left_out == 2
    assert cells(overview(group))["mha"]["dev nats/token"] == "1.000"


def test_a_later_measurement_of_fewer_trainings_takes_no_speed_away() -> None:
    """Though it has as many variants."""
    main = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2)]
    more = [synthetic.record(4), synthetic.record(1, placement="decoder")]
    whole = synthetic.measurement(main)
    later = whole.created_utc.replace(year=2027)
    of_others = synthetic.measurement([main[0], *more], created=later)
    again = replace(whole, created_utc=later)
    for others, expected in (([of_others], whole), ([of_others, again], again)):
        (group,) = group_records([*main, *more], [whole, *others])
        assert group.measurement is expected


def test_each_experiment_has_a_section_of_its_own() -> None:
    one, other = synthetic.record(8), synthetic.record(1)
    other = replace(other, job=replace(other.job, experiment="another"))
    assert len(group_records([one, other])) == 2


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


# What made it.


MADE = synthetic.provenance()
OTHER_MACHINE = Hardware(cpu_model="Other CPU", cores_usable=4, memory_bytes=2**30, gpus=["X"])
OTHERS = {
    "code": (
        replace(MADE, code=replace(MADE.code, commit="b" * 40, digest=synthetic.sha256("other"))),
        "commit c0ffee0 for {}; commit bbbbbbb for {}",
    ),
    "versions": (
        replace(MADE, versions=MADE.versions | {"torch": "2.11.0"}),
        "python 3.11.7, torch 2.13.0, ve-fairseq 0.12.3 for {}; "
        "python 3.11.7, torch 2.11.0, ve-fairseq 0.12.3 for {}",
    ),
    "machines": (
        replace(MADE, hardware=OTHER_MACHINE),
        "Synthetic CPU (2 cores, 24 GiB), no GPU for {}; Other CPU (4 cores, 1 GiB), 1 × X for {}",
    ),
    "numbers of threads": (replace(MADE, threads=3), "2 threads for {}; 3 threads for {}"),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_what_made_a_result_parts_no_group_and_is_named(what: str) -> None:
    made, expected = OTHERS[what]
    records = [synthetic.record(8), synthetic.made_by(synthetic.record(1), made)]
    group = group_of(records)
    assert [row.name for row in group.rows] == ["mha", "mqa"]
    by_mha, by_mqa = (
        " and ".join(f"{stage} of {name}" for stage in ("prepare", "train", "evaluate"))
        for name in ("mha", "mqa")
    )
    common, difference = made_by(group.records)
    assert difference == f"Made by different {what}: {expected.format(by_mha, by_mqa)}."
    assert common.startswith("Made by: ")
    for table in group_tables(group):
        assert {common, difference} <= set(table.notes)


def test_stages_of_one_record_that_other_code_made_are_named() -> None:
    """A training of other code with the same recipe is used, and the report says so."""
    made, _ = OTHERS["code"]
    records = [
        synthetic.made_by(synthetic.record(heads, seed), made, "evaluate")
        for heads in (8, 1)
        for seed in (1, 2)
    ]
    records[0] = synthetic.made_by(records[0], made, "train")
    _, difference = made_by(group_of(records).records)
    assert difference == (
        "Made by different code: commit c0ffee0 for prepare of all and train of mha seed 2, mqa "
        "seed 1, mqa seed 2; commit bbbbbbb for train of mha seed 1 and evaluate of all."
    )


def test_made_alike_is_one_line() -> None:
    (line,) = made_by([synthetic.record(8), synthetic.record(1, seed=3)])
    assert line == (
        "Made by: commit c0ffee0; python 3.11.7, torch 2.13.0, ve-fairseq 0.12.3; "
        "Synthetic CPU (2 cores, 24 GiB), no GPU; 2 threads; seed 1, 3."
    )


def test_one_machine_is_one_machine_after_a_reboot() -> None:
    """The memory that the kernel keeps for itself differs from boot to boot."""
    hardware = replace(MADE.hardware, memory_bytes=MADE.hardware.memory_bytes - 4096)
    rebooted = synthetic.made_by(synthetic.record(1), replace(MADE, hardware=hardware))
    assert len(made_by(group_of([synthetic.record(8), rebooted]).records)) == 1
