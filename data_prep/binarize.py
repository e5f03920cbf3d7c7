"""Pieces to fairseq's binary format, with fairseq's own command."""

import sys
from pathlib import Path

from data_prep.manifest import SOURCE_LANG, TARGET_LANG
from data_prep.subprocesses import run_logged


def binarize(pieces: Path, dictionary: Path, folder: Path, workers: int, log: Path) -> None:
    """Run fairseq-preprocess on `pieces`/{train,dev,test}.{en,de} into `folder`.

    fairseq calls dev `valid`. Raises DataError when the command fails; the log says why.
    """
    command = [sys.executable, "-m", "fairseq_cli.preprocess"]
    command += ["--source-lang", SOURCE_LANG, "--target-lang", TARGET_LANG]
    command += ["--trainpref", str(pieces / "train"), "--validpref", str(pieces / "dev")]
    command += ["--testpref", str(pieces / "test"), "--destdir", str(folder)]
    command += ["--srcdict", str(dictionary), "--joined-dictionary", "--workers", str(workers)]
    run_logged(command, log)
    # It holds times and paths, and our log has the same: what stays are the data's own bytes.
    (folder / "preprocess.log").unlink(missing_ok=True)
