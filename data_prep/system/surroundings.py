"""What a process finds around it: variables, a home, a terminal; made harmless before any work.

A stranger's machine may ask Python to leave out assertions, in which fairseq does work, may have no
home and no name for the user, and may have a terminal that knows ASCII alone.
"""

import getpass
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

# Where libraries keep what they can make again, by the variable that moves it.
CACHES = (
    "XDG_CACHE_HOME",
    "MPLCONFIGDIR",
    "TRITON_HOME",
    "TORCH_HOME",
    "WANDB_CACHE_DIR",
    "WANDB_CONFIG_DIR",
    "WANDB_DATA_DIR",
)
# They change what Python or a library does, in a child as here.
HARMFUL = ("PYTHONOPTIMIZE", "PYTHONWARNINGS")


def child_environment() -> dict[str, str]:
    """The variables of every process that is started: this one's, without the harmful ones.

    What a child writes goes to a log in UTF-8, whatever the terminal takes. Where there is no home
    or user, caches have a private folder and the user a name.
    """
    kept = {name: value for name, value in os.environ.items() if name not in HARMFUL}
    return kept | {"PYTHONIOENCODING": "utf-8:backslashreplace"} | _home_and_user()


def settle() -> None:
    """Make this process ready for whatever surrounds it; the first thing that a command does.

    Its standard output writes what its encoding lacks as an escape: standard error does already.
    """
    for name in HARMFUL:
        os.environ.pop(name, None)
    os.environ.update(_home_and_user())
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def console_of(*, stderr: bool = False, width: int | None = None, wraps: bool = False) -> Console:
    """A console that prints text as it is: brackets are no markup, and colons no emoji.

    With `wraps` the cells of a table go on below where the terminal is too narrow.
    """
    return Console(
        stderr=stderr,
        width=width,
        soft_wrap=not wraps,
        markup=False,
        highlight=False,
        emoji=False,
    )


def private_folder() -> Path:
    """A folder below the system's temporary one that this user alone can write.

    It is the same each time, unless somebody else has taken its name.
    """
    folder = Path(tempfile.gettempdir(), f"gqa-fairseq-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError
    except OSError:
        return Path(tempfile.mkdtemp(prefix="gqa-fairseq-"))
    return folder


def _home_and_user() -> dict[str, str]:
    """The variables that are missing where there is no home, or no user, that can be used."""
    added = {}
    try:
        home = Path.home()
        usable = home.is_dir() and os.access(home, os.W_OK | os.X_OK)
    except RuntimeError:  # no HOME, and the system does not know the user
        added["HOME"] = str(private_folder())
        usable = False
    if not usable:  # a home that can be read may have settings: it stays
        missing = [name for name in CACHES if name not in os.environ]
        if missing:
            added |= dict.fromkeys(missing, str(private_folder()))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        added["LOGNAME"] = f"user{os.getuid()}"
    return added
