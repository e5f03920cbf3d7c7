"""Which archives a corpus is made of: a table in JSON, WMT14's own or one that the user gives."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from data_prep.corpora.corpus import Download
from data_prep.spec import Checksum, DataError, Positive, Setting, Strict

WMT14_TABLE = Path(__file__).with_name("wmt14_en_de.json")

Role = Literal["train", "dev", "test", "test_filtered"]


class Archive(Strict, frozen=True, kw_only=True):
    """A tar archive and the two of its members that are used, in the order of the languages.

    `name` is that of the text that comes out. Train may have several archives, each other role has
    one. Members that end in `.sgm` are SGML. `size_bytes` is None where the publisher gives none;
    `pairs` is how many there are.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    role: Role
    url: Annotated[str, Meta(pattern="^https?://.*[^/]$")]
    checksum: Checksum
    members: tuple[str, str]
    pairs: Positive
    size_bytes: Positive | None = None

    @property
    def download(self) -> Download:
        """What has to be fetched."""
        return Download(url=self.url, checksum=self.checksum, size_bytes=self.size_bytes)


class Sources(Strict, frozen=True, kw_only=True):
    """The table: archives in the order in which their text is used."""

    title: str
    licence: str
    archives: tuple[Archive, ...]

    def __post_init__(self) -> None:
        roles = [archive.role for archive in self.archives]
        if "train" not in roles or any(roles.count(role) != 1 for role in ("dev", "test")):
            raise ValueError("it needs one archive for dev, one for test, at least one for train")
        if roles.count("test_filtered") > 1:
            raise ValueError("it has more than one test_filtered")
        for kind, names in (
            ("names", [archive.name for archive in self.archives]),
            ("file names", [archive.download.name for archive in self.archives]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two archives have the same {kind}")
        for member in (member for archive in self.archives for member in archive.members):
            path = PurePosixPath(member)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"member {member!r} would leave the folder")


def read_sources(path: Path) -> Sources:
    """The table in the file `path`; raises DataError when it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sources)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}: ", Setting("sources"), " takes a JSON file"
        ) from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}: write it as {WMT14_TABLE.name} is") from error
