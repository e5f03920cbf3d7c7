"""Parallel text in, a corpus that fairseq trains on out; knows nothing of models.

`prepare` is the whole of it, and `python -m data_prep --help` the same as a command.
"""

from data_prep.errors import DataError
from data_prep.manifest import DataSpec, Manifest, load_manifest
from data_prep.pipeline import prepare

__all__ = ["DataError", "DataSpec", "Manifest", "load_manifest", "prepare"]
