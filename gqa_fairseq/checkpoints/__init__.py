"""Checkpoints of fairseq: which classes they may hold; loaded, averaged, converted."""
