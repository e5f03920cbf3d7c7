"""fairseq plugin (`--user-dir gqa_fairseq`); fairseq imports `models` and `tasks` of it."""
