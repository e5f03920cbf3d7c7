"""What made the results, in words: one line where all was made alike, else a line a difference."""

from collections import Counter
from collections.abc import Iterable, Sequence

from experiments.records.measurement import Measurement
from experiments.records.parts import CodeInfo, Hardware, Provenance
from experiments.records.record import Record

PACKAGES = ("python", "torch", "ve-fairseq", "fairseq-fixed")


def made_by(records: Sequence[Record]) -> list[str]:
    """`Made by: ...` for what is common to all stages of all records, and a line a difference."""
    common: list[str] = []
    differences: list[str] = []
    made = [
        (stage.name, label, _words(stage.provenance))
        for record, label in zip(records, _labels(records), strict=True)
        for stage in record.stages
    ]
    for what in made[0][2]:
        makers: dict[str, dict[str, list[str]]] = {}
        for stage_name, label, words in made:
            makers.setdefault(words[what], {}).setdefault(stage_name, []).append(label)
        if len(makers) == 1:
            common += makers
        else:
            stages = [f"{by} for {_of_whom(did, records)}" for by, did in makers.items()]
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


def _labels(records: Sequence[Record]) -> list[str]:
    """Variants, with the seed of those that are there with several."""
    times = Counter(record.variant for record in records)
    return [r.variant if times[r.variant] == 1 else f"{r.variant} seed {r.seed}" for r in records]


def _of_whom(did: dict[str, list[str]], records: Sequence[Record]) -> str:
    """Such as `train of mha, mqa and evaluate of all`."""
    texts = []
    for stage, labels in did.items():
        all_with_stage = sum(record.stage(stage) is not None for record in records)
        whom = "all" if len(labels) == all_with_stage else ", ".join(labels)
        texts.append(f"{stage} of {whom}")
    return " and ".join(texts)
