"""One thread: the machines that run these tests have few cores, and reductions keep their order.

This folder is on the import path (pytest puts a conftest's folder there), so tests of every kind
share the helper modules beside this file.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
