"""Records and the papers' numbers, as tables and plots; imports neither torch nor fairseq."""
