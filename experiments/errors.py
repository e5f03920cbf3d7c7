"""The one error of this package that a user is meant to read.

Raise it for what a user can put right; a command's `main` prints it as one line and exits with 2.
"""


class ExperimentError(Exception):
    """An experiment cannot run, or a result cannot be used; the message says what to do."""


class CompositionError(ExperimentError):
    """Hydra cannot compose the config; a command exits with 1, which is Hydra's exit code."""
