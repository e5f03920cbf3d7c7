"""Pieces to fairseq's binary format, with fairseq's own command (see preprocess.py)."""

import sys
from pathlib import Path

from data_prep.spec import Languages
from data_prep.system.subprocesses import run_logged


def binarize(
    pieces: Path, languages: Languages, dictionary: Path, folder: Path, workers: int, log: Path
) -> None:
    """Run fairseq-preprocess on `pieces`/{train,dev,test}.LANGUAGE into `folder`.

    fairseq calls dev `valid`. Raises DataError when the command fails; the log says why.
    """
    command = [sys.executable, "-m", "data_prep.transform.preprocess", str(pieces)]
    command += ["--task", "data_prep"]
    command += ["--source-lang", languages[0], "--target-lang", languages[1]]
    command += ["--trainpref", "train", "--validpref", "dev", "--testpref", "test"]
    command += ["--destdir", str(folder.resolve())]
    command += ["--srcdict", str(dictionary.resolve()), "--joined-dictionary"]
    command += ["--workers", str(_parts(workers))]
    run_logged(command, log)
    # It holds times and paths, and our log has the same: what stays are the data's own bytes.
    (folder / "preprocess.log").unlink(missing_ok=True)


def _parts(workers: int) -> int:
    """Into how many parts fairseq-preprocess cuts a file.

    It does all but one at the same time, and then the last one: few parts leave cores idle.
    """
    return 1 if workers == 1 else 3 * workers + 1
