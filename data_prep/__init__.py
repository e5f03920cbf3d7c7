"""Parallel text in, a corpus that fairseq trains on out; knows nothing of models.

`data_prep.spec` says what can be asked for and what came out, `data_prep.corpora.registry.request`
which data a spec asks for; both import in milliseconds. `data_prep.pipeline.prepare` does the work,
and `python -m data_prep --help` is the same as a command.
"""
