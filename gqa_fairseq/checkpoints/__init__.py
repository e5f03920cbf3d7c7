"""Checkpoints of fairseq: which classes they may hold, how they are loaded and averaged."""
