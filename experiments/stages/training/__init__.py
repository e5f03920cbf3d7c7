"""The train stage: fairseq's command, its log, and what makes a model of it."""
