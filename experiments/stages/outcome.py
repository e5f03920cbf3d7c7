"""How a job of a sweep ended: a value and a file, as a launcher may run it on another machine."""

from typing import Literal

import msgspec

Status = Literal["done", "skipped", "diverged", "failed"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`skipped`: its record was there. `message` says why, where it is `diverged` or `failed`."""

    job: str
    status: Status
    message: str = ""

    @property
    def has_model(self) -> bool:
        return self.status in ("done", "skipped")
