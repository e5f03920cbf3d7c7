"""Small parallel files out of the embedded sample, for tests of data_prep and of jobs."""

from itertools import islice
from pathlib import Path

from data_prep.corpora.sample_en_de import Sample
from data_prep.spec import DataSpec

SIZES = {"train": 400, "dev": 20, "test": 30}


def write_local_files(folder: Path) -> DataSpec:
    """Six files below `folder`, with lines that cleaning drops, and the spec that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    for split, size in SIZES.items():
        pairs = list(islice(Sample().pairs(split, Path()), size))
        if split == "train":
            pairs += [("", "leer"), ("bell \x07", "Glocke"), ("one", "eins " * 40)]
            pairs.append((next(Sample().pairs("test", Path()))[0].upper(), "Vom Test."))
        for side, name in enumerate(("source", "target")):
            path = folder / f"{split}.{name}.txt"
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            path.write_text(text, encoding="utf-8", newline="\n")
            paths[f"{split}_{name}"] = str(path)
    return DataSpec(name="local", vocab_size=500, **paths)


def local_files(folder: Path) -> list[str]:
    """The same files, as overrides of a job's config."""
    spec = write_local_files(folder)
    names = [f"{split}_{side}" for split in SIZES for side in ("source", "target")]
    return [f"data.{name}={getattr(spec, name)}" for name in names]


def command_line(spec: DataSpec, out: Path) -> list[str]:
    """The arguments of `python -m data_prep` that ask for `spec`."""
    arguments = [spec.name, "--out", str(out), "--vocab-size", str(spec.vocab_size)]
    for split in SIZES:
        for side in ("source", "target"):
            arguments += [f"--{split}-{side}", getattr(spec, f"{split}_{side}")]
    return arguments
