"""What made the results, in words: one line where all was made alike, else a line a difference."""

from collections.abc import Iterable, Sequence

from experiments.records.measurement import Measurement
from experiments.records.parts import CodeInfo, Hardware, Provenance
from experiments.records.record import Record

PACKAGES = ("python", "torch", "ve-fairseq", "fairseq-fixed")


def made_by(records: Sequence[Record]) -> list[str]:
    """`Made by: ...` for what is common to all stages of all records, and a line a difference."""
    common: list[str] = []
    differences: list[str] = []
    for what in _words(records[0].stages[0].provenance):
        makers: dict[str, dict[str, list[str]]] = {}
        for record in records:
            for stage in record.stages:
                by_stage = makers.setdefault(_words(stage.provenance)[what], {})
                by_stage.setdefault(stage.name, []).append(_label(record, records))
        if len(makers) == 1:
            common += makers
        else:
            stages = [f"{words} for {_of_whom(did, records)}" for words, did in makers.items()]
            differences.append(f"Made by different {what}: {'; '.join(stages)}.")
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in records}))
    return [f"Made by: {'; '.join([*common, f'seed {seeds}'])}.", *differences]


def measured_by(measurement: Measurement) -> str:
    """When and on what it was measured."""
    words = _words(measurement.provenance).values()
    return (
        f"Measured {measurement.created_utc:%Y-%m-%d} on {measurement.device} in "
        f"{measurement.dtype} with {measurement.operators} operators by: {'; '.join(words)}."
    )


def hardware_text(hardware: Hardware) -> str:
    """Such as `Intel X (2 cores, 24 GiB), no GPU`."""
    gpus = ", ".join(f"{hardware.gpus.count(name)} × {name}" for name in distinct(hardware.gpus))
    # The kernel's share of the memory differs from boot to boot: gibibytes are enough.
    memory_gib = hardware.memory_bytes / 2**30
    cores = f"{hardware.cores_usable} cores, {memory_gib:.0f} GiB"
    return f"{hardware.cpu_model} ({cores}), {gpus or 'no GPU'}"


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order of their first appearance."""
    return list(dict.fromkeys(texts))


def _words(made: Provenance) -> dict[str, str]:
    versions = made.versions
    return {
        "code": _code_text(made.code),
        "versions": ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions),
        "machines": hardware_text(made.hardware),
        "numbers of threads": f"{made.threads} threads",
    }


def _code_text(code: CodeInfo) -> str:
    if code.commit is None:
        return code.label
    return f"commit {code.label}" + (f" (digest {code.digest[:7]})" if code.dirty else "")


def _label(record: Record, records: Sequence[Record]) -> str:
    alike = [other for other in records if other.variant == record.variant]
    return record.variant if len(alike) == 1 else f"{record.variant} seed {record.seed}"


def _of_whom(did: dict[str, list[str]], records: Sequence[Record]) -> str:
    """Such as `train of mha, mqa and evaluate of all`."""
    texts = []
    for stage, labels in did.items():
        all_with_stage = sum(record.stage(stage) is not None for record in records)
        whom = "all" if len(labels) == all_with_stage else ", ".join(labels)
        texts.append(f"{stage} of {whom}")
    return " and ".join(texts)
