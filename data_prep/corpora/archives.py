"""Members of tar archives as files of our own names: those that are named, and nothing else."""

import lzma
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from data_prep.spec import DataError


def extract_members(archive: Path, members: Mapping[str, Path]) -> None:
    """Write each member of `archive` named in `members` to its path, reading the archive once.

    The paths are the caller's, so that nothing in an archive decides where a file is written.
    Raises DataError for a damaged archive and for members that it lacks or that are no files.
    """
    wanted = dict(members)
    try:
        with tarfile.open(archive, "r|*") as stream:
            while wanted and (entry := stream.next()) is not None:
                # Archives often have "./" in front of their members.
                path = wanted.pop(entry.name.removeprefix("./"), None)
                if path is None:
                    continue
                content = stream.extractfile(entry) if entry.isreg() else None
                if content is None:
                    raise DataError(
                        f"{archive}: member {entry.name} is a link or a folder, not a file: get "
                        "the archive again, or from another mirror"
                    )
                with path.open("wb") as target:
                    shutil.copyfileobj(content, target, 1 << 20)
                # A stream remembers every member it has seen (in a list typeshed has not).
                stream.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive}: a damaged archive ({error}): get it again") from error
    except OSError as error:
        if error.errno is None:  # gzip's, such as a wrong sum
            raise DataError(f"{archive}: a damaged archive ({error}): get it again") from error
        raise
    if wanted:
        raise DataError(
            f"{archive}: lacks {', '.join(wanted)}: not the archive it should be; try another "
            "mirror, or name the members in sources"
        )
