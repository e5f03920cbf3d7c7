"""A corpus from its text to what fairseq trains on, as steps that are done once.

    fetch -> clean -> vocabulary -> encode -> binarize
                                      +----> compare (overlap with train, baselines)

Steps work below DIR/work. When all are done, what they made moves to its place and manifest.json is
written, last: a folder that has it is complete.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.binarize import binarize
from data_prep.clean import Cleaned, clean_splits
from data_prep.corpora import Corpus, open_corpus
from data_prep.encode import Encoded, Encoder, encode_splits
from data_prep.fetch import fetch_all
from data_prep.manifest import (
    HELD_OUT,
    SOURCE_LANG,
    SPLITS,
    TARGET_LANG,
    DataSpec,
    Manifest,
    Overlap,
    SplitCounts,
    digest,
)
from data_prep.overlap import measure_overlap
from data_prep.progress import Advance, show
from data_prep.result import WORK, only_one, publish, read_finished, result_files
from data_prep.steps import Step, Steps
from data_prep.text import read_text, text_files
from data_prep.vocabulary import DICTIONARY_NAME, MODEL_NAME, train_vocabulary

# Part of every request: raise it when the same request gives other data than before.
RECIPE = 1
PACKAGES = ("sentencepiece", "scikit-learn", "ve-fairseq", "fairseq-fixed")


def prepare(
    spec: DataSpec,
    out: Path,
    *,
    mirror: str | None = None,
    workers: int = 1,
    force: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Prepare `spec` in the folder `out` and return its manifest.

    Nothing is done where it is done already, unless `force`. `mirror` is a folder or URL to take
    downloads from; `workers` processes share the work and change nothing in the result. Progress
    goes to `console`, by default the error stream. Raises DataError, and leaves what was prepared
    before as it was, when an input or a setting cannot be used.
    """
    console = console or Console(stderr=True)
    corpus = open_corpus(spec)
    settings = [spec.name, spec.vocab_size, spec.max_pieces, spec.max_ratio]
    request = digest([RECIPE, settings, corpus.inputs])
    with only_one(out, console):
        if force:
            shutil.rmtree(out / WORK, ignore_errors=True)
        elif done := read_finished(out, request):
            return done
        finished, manifest = _run_steps(
            spec, corpus, request, out, mirror=mirror, workers=workers, console=console
        )
        publish(finished, manifest, out)
        return manifest


def _run_steps(
    spec: DataSpec,
    corpus: Corpus,
    request: str,
    out: Path,
    *,
    mirror: str | None,
    workers: int,
    console: Console,
) -> tuple[Sequence[Step[Any]], Manifest]:
    """The steps whose files are to be published, and the manifest that describes them."""
    steps = Steps(out / WORK, console)
    downloads, logs = out / "downloads", out / "logs"
    if corpus.urls:
        with show(console, "fetch", "bytes") as advance:
            fetch_all(corpus.urls, corpus.inputs, downloads, mirror, advance)

    def clean(folder: Path, advance: Advance) -> Cleaned:
        return clean_splits(lambda split: corpus.pairs(split, downloads), folder, advance)

    cleaned = steps.run("clean", [RECIPE, corpus.inputs], clean, Cleaned)

    def train_pieces(folder: Path, advance: Advance) -> None:
        texts = text_files(cleaned.folder, "train")
        train_vocabulary(texts, spec.vocab_size, folder, logs / "vocabulary.log")

    vocabulary = steps.run(
        "vocabulary", [RECIPE, cleaned.files, spec.vocab_size], train_pieces, type(None)
    )

    def encode(folder: Path, advance: Advance) -> dict[str, Encoded]:
        encoder = Encoder(vocabulary.folder / MODEL_NAME, workers)
        limits = spec.max_pieces, spec.max_ratio
        return encode_splits(cleaned.folder, encoder, *limits, folder, advance)

    encoded = steps.run(
        "encode",
        [RECIPE, cleaned.files, vocabulary.files, spec.max_pieces, spec.max_ratio],
        encode,
        dict[str, Encoded],
    )

    def to_binary(folder: Path, advance: Advance) -> None:
        dictionary = vocabulary.folder / DICTIONARY_NAME
        log = logs / "binarize.log"
        binarize(encoded.folder / "pieces", dictionary, folder / "bin", workers, log)

    binarized = steps.run(
        "binarize", [RECIPE, encoded.files, vocabulary.files], to_binary, type(None)
    )

    def compare(folder: Path, advance: Advance) -> dict[str, Overlap]:
        return _compare(encoded.folder / "text", folder / "baselines", advance)

    compared = steps.run("compare", [RECIPE, encoded.files], compare, dict[str, Overlap])

    finished = (vocabulary, encoded, binarized, compared)
    files = result_files(finished)
    manifest = Manifest(
        name=spec.name,
        source_lang=SOURCE_LANG,
        target_lang=TARGET_LANG,
        licence=corpus.licence,
        vocab_size=spec.vocab_size,
        max_pieces=spec.max_pieces,
        max_ratio=spec.max_ratio,
        request=request,
        inputs=corpus.inputs,
        splits={
            split: _split_counts(split, cleaned.result, encoded.result[split]) for split in SPLITS
        },
        overlap=compared.result,
        files=files,
        checksum=digest(files),
        versions=_versions(),
    )
    return finished, manifest


def _compare(texts: Path, out: Path, advance: Advance) -> dict[str, Overlap]:
    """Write the baselines into `out`; returns the overlap of dev and test with train."""
    # Only here is scikit-learn wanted, which takes longer to import than all else.
    from data_prep.baselines import write_baselines

    train = list(read_text(texts, "train"))
    sources = {split: [source for source, _ in read_text(texts, split)] for split in HELD_OUT}
    write_baselines(train, sources["test"], out, advance)
    return measure_overlap((source for source, _ in train), sources)


def _split_counts(split: str, cleaned: Cleaned, encoded: Encoded) -> SplitCounts:
    """Both passes over a split together; its constructor asserts that kept + dropped is read."""
    dropped = dict(encoded.dropped)
    if split == "train":
        dropped = {reason: count + cleaned.dropped[reason] for reason, count in dropped.items()}
    return SplitCounts(
        read=cleaned.read[split],
        kept=encoded.kept,
        dropped=dropped,
        source_pieces=encoded.source_pieces,
        target_pieces=encoded.target_pieces,
    )


def _versions() -> dict[str, str]:
    """Versions of what writes the data; fairseq is one of two packages."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
