"""Measuring: contenders do the same work in turn, `python -m experiments.measure REQUEST OUT`."""
