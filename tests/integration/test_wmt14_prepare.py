"""WMT14's way from archives on a server to binarized data, with small archives of its layout."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace
from range_server import serve
from rich.console import Console
from wmt14_mirror import EACH, newstest, real_mirror, small_mirror

import data_prep.download.transfer
import data_prep.transform.clean
import data_prep.transform.encode
from data_prep import pipeline
from data_prep.__main__ import main
from data_prep.corpora.sources import read_sources
from data_prep.pipeline import prepare
from data_prep.spec import DataError, DataSpec, load_manifest
from data_prep.system.files import sha256_of_file
from data_prep.text import read_lines, read_text
from data_prep.transform.encode import encode_splits

QUIET = Console(quiet=True)
COMMONCRAWL = "training-parallel-commoncrawl.tgz"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return small_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(scope="module")
def mirror(spec):
    return Path(spec.sources).parent


@pytest.fixture(scope="module")
def prepared(spec, mirror, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(spec, out, console=QUIET)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(data_prep.download.transfer, "_WAITS_S", (0, 0, 0))


def files_of(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): sha256_of_file(path)
        for path in out.rglob("*")
        if path.is_file() and path.parent.name != "logs"
    }


def command(spec: DataSpec, out: Path, mirror: Path | str) -> list[str]:
    arguments = [spec.name, "--out", str(out), "--vocab-size", str(spec.vocab_size)]
    return [*arguments, "--sources", str(spec.sources), "--mirror", str(mirror), "--workers", "1"]


def test_every_pair_is_accounted_for(prepared):
    out, manifest = prepared
    train = manifest.splits["train"]
    assert train.read == 3 * EACH + 4
    dropped = dict(train.dropped)
    assert dropped.pop("ratio") > 1
    assert dropped == {"empty": 1, "control_characters": 1, "held_out": 1, "too_long": 0}
    assert manifest.splits["dev"].read == 20
    assert manifest.splits["test"].read == 30
    assert "not checked to be WMT14" in manifest.note
    assert [path.name for path in (out / "baselines").iterdir()] == ["copy.test.de"]
    assert (out / "logs" / "timings.json").is_file()


def test_the_filtered_lines(prepared):
    out, manifest = prepared
    subset = manifest.subsets["filtered"]
    numbers = [int(line) for line in read_lines(out / subset.file)]
    assert numbers == [number + 1 for number in range(30) if number % 7]
    assert subset.lines == len(numbers)
    assert subset.file in manifest.files


def test_more_workers_give_the_same_bytes(spec, mirror, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(data_prep.transform.clean, "CHUNK_PAIRS", 40)
    monkeypatch.setattr(data_prep.transform.encode, "CHUNK_PAIRS", 40)
    prepare(spec, tmp_path / "out", workers=2, console=QUIET)
    assert files_of(tmp_path / "out") == files_of(prepared[0])


def test_from_a_server_that_cuts_a_connection_and_an_interruption(
    spec, mirror, prepared, tmp_path, monkeypatch
):
    def die_after(work, *arguments):
        work(*arguments)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    third = (mirror / COMMONCRAWL).stat().st_size * 3 // 10
    with serve(mirror) as (url, faults):
        faults.cut_at[COMMONCRAWL] = third
        monkeypatch.setattr(pipeline, "encode_splits", partial(die_after, encode_splits))
        with pytest.raises(KeyboardInterrupt):
            prepare(replace(spec, mirror=url), out, console=QUIET)
        monkeypatch.setattr(pipeline, "encode_splits", encode_splits)
        monkeypatch.setattr(pipeline, "clean_splits", None)  # done, and not done again
        manifest = prepare(replace(spec, mirror=url), out, console=QUIET)
        assert faults.ranges_of(COMMONCRAWL) == [None, f"bytes={third}-"]
        assert len(faults.requests) == len(read_sources(Path(spec.sources)).archives) + 1
    assert manifest == prepared[1]
    assert files_of(out) == files_of(prepared[0])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_within_a_step(spec, mirror, prepared, tmp_path, sent):
    """Nothing that it started keeps the lock, and the next run ends with the same bytes."""
    out = tmp_path / "out"
    line = [sys.executable, "-m", "data_prep", *command(spec, out, mirror), "--workers", "2"]

    def heed_interrupts() -> None:  # what runs in a shell's background inherits that it does not
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        # fairseq takes seconds to start: the step cannot end before the signal.
        while not (out / "work" / "binarize.part").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(sent)
        _, errors = process.communicate()
    assert process.returncode == (130 if sent == signal.SIGINT else 128 + signal.SIGTERM)
    assert "Traceback" not in errors
    assert not (out / "work" / "binarize.part").exists()
    prepare(spec, out, console=QUIET)
    assert files_of(out) == files_of(prepared[0])


def test_two_processes_at_once(spec, mirror, prepared, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, "-m", "data_prep", *command(spec, out, mirror)]
    processes = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sum("binarize" in errors for _, errors in printed) == 1
    assert files_of(out) == files_of(prepared[0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong byte", "sha256 is "),
        ("truncated", "bytes, expected"),
        ("missing", "lacks this file"),
        ("members", "lacks training/europarl"),
        ("disk", "more disk space needed"),
        ("write", "No space left on device: free some"),
    ],
)
def test_faults_end_in_one_line(tmp_path, capsys, monkeypatch, fault, message):
    spec = small_mirror(tmp_path / "mirror")
    archive = tmp_path / "mirror" / COMMONCRAWL
    content = archive.read_bytes()
    if fault == "wrong byte":
        archive.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "truncated":
        archive.write_bytes(content[: len(content) // 2])
    elif fault == "missing":
        archive.unlink()
    elif fault == "members":
        table = Path(spec.sources).read_text(encoding="utf-8")
        Path(spec.sources).write_text(table.replace("europarl-v7.de-en", "europarl-v7.xx-en"))
    elif fault == "disk":
        monkeypatch.setattr(pipeline, "WORK_BYTES_PER_PAIR", 10**12)
    else:
        monkeypatch.setattr("data_prep.corpora.archives.shutil.copyfileobj", no_space)
    out = tmp_path / "out"
    assert main(command(spec, out, tmp_path / "mirror")) == 2
    errors = [line for line in capsys.readouterr().err.split("\n") if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (out / "manifest.json").exists()
    assert not (out / "bin").exists()


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_sources_are_for_wmt14(tmp_path, capsys):
    assert main(["sample_en_de", "--out", str(tmp_path / "o"), "--sources", "x"]) == 2
    assert "sample_en_de does not take --sources: wmt14_en_de does" in capsys.readouterr().err


@pytest.mark.slow
def test_real_newstest(tmp_path):
    """The references are byte for byte those of the plain-text newstest."""
    spec = real_mirror(tmp_path / "mirror", 2_000)
    if spec is None:
        pytest.skip("CORPORA_DIR is not set: no newstest to read")
    out = tmp_path / "out"
    with serve(tmp_path / "mirror") as (url, _):
        manifest = prepare(replace(spec, mirror=url), out, console=QUIET)
    assert manifest == load_manifest(out / "manifest.json")
    counts = {split: manifest.splits[split].read for split in ("train", "dev", "test")}
    assert counts == {"train": 6_000, "dev": 3_000, "test": 3_003}
    assert manifest.subsets["filtered"].lines == 2_737
    news = Path(os.environ["CORPORA_DIR"]) / "newstest"
    for split, year in (("dev", 2013), ("test", 2014)):
        expected = [tuple(" ".join(side.split()) for side in pair) for pair in newstest(news, year)]
        assert list(read_text(out / "text", split, spec.languages)) == expected


def test_bad_sources_leave_nothing(tmp_path):
    with pytest.raises(DataError, match="sources takes a JSON file"):
        prepare(DataSpec(name="wmt14_en_de", vocab_size=9, sources="nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
