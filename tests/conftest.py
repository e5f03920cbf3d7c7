"""One thread: the machines that run these tests have few cores, and reductions keep their order.

This folder is on the import path (pytest puts a conftest's folder there), so tests of every kind
share the helper modules beside this file.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hydra.version import setbase

# Tests end their processes by it; under nohup these would inherit that it is ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Tests call make: what the make that runs them was given is not meant for those.
for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def hydra_for_fairseq() -> None:
    """fairseq reads older checkpoints in a way that hydra refuses from version base 1.2 on.

    hydra keeps the version base that a test composed with until the process ends.
    """
    setbase("1.1")
