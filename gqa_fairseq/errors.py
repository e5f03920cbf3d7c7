"""A bad option: an exception for whoever calls, one line and an end for a command."""


class OptionError(SystemExit, ValueError):
    """An option that is wrong, or that the plugin refuses.

    fairseq raises ValueError there, and callers of the hub and of scripts catch that; its commands
    catch nothing. So this is a ValueError that, where nobody catches it, ends the process as
    sys.exit does: one line to the terminal, no traceback, exit status 1.

    Args:
        message: one line that names the option and says what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {message}")
