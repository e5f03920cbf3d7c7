"""What is kept of runs: JSON files with a strict schema, and the hypotheses beside them."""
