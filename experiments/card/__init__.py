"""What a GPU is asked in one call: parts, each a process of its own (docs/gpu.md)."""
