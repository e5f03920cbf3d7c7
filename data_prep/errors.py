"""The one error of this package that a user is meant to read.

Raise it for what a user can put right; the command's `main` prints it as one line and exits with 2.
"""


class DataError(Exception):
    """Text, a download or a setting cannot be used; the message says what to do."""
