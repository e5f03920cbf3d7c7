"""Records and measurements as runs in Weights & Biases: a view, made after the files."""
