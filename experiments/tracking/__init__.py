"""Records, measurements and tests as runs in Weights & Biases: a view of the files."""
