"""The evaluate stage: losses, translations and their scores, in a process of its own."""
