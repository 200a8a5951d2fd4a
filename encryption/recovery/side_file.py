"""How far an interrupted copy has come: TARGET.bartizan-resume, beside the target until the copy is complete.

It holds what was asked for, the source's fingerprint, the target's inode and one offset; never a key, nor anything of
one. A save replaces the file in one piece, so that a kill leaves the old one or the new one.

Whoever could write it could direct the next run, so one that belongs to another user is refused.
"""

import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final, get_args

from encryption.adapters.image_files import sync_folder
from inventory.errors import Conflict, Unavailable

Operation = Literal["encrypt", "decrypt", "recrypt"]
SUFFIX = ".bartizan-resume"

_MAX_BYTES = 1024
_NUMBER = "0|[1-9][0-9]{0,18}"
_SHAPE = re.compile(
    "bartizan-resume 1\n"
    f"operation ({'|'.join(get_args(Operation))})\n"
    r"source ([0-9]+\.[0-9]+\.-?[0-9]+)"
    "\n"
    f"size ({_NUMBER})\n"
    f"target (none|{_NUMBER})\n"
    f"offset (none|{_NUMBER})\n",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Mark:
    """One interrupted copy. `target` is the inode of the file it writes (None: not made yet); below `offset` it is
    complete (None: the target holds nothing to go on from). `size` is the disk's, in bytes."""

    operation: Operation
    source: str
    size: int
    target: int | None = None
    offset: int | None = None


@final
class SideFile:
    """The side file of one target."""

    def __init__(self, target: str) -> None:
        self.path = target + SUFFIX

    def load(self) -> Mark | None:
        """None when there is none. Raises Conflict (resume_file_foreign, resume_file_damaged), Unavailable."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Unavailable("resume_file_unreadable", f"cannot open {self.path}: {exc.strerror}") from exc
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
                raise Conflict(
                    "resume_file_foreign",
                    f"{self.path} is not yours alone",
                    hint="go on as the user who began the copy, or delete it and its target to begin anew",
                )
            content = file.read(_MAX_BYTES)
        found = _SHAPE.fullmatch(content.decode("ascii", "replace"))
        if found is None:
            raise Conflict(
                "resume_file_damaged",
                f"{self.path} cannot be read as what a copy leaves behind",
                hint="delete it and its target to begin anew",
            )
        operation, source, size, target, offset = found.groups()
        return Mark(_operation(operation), source, int(size), _number(target), _number(offset))

    def save(self, mark: Mark) -> None:
        """On stable storage when it returns. Raises OSError."""
        text = (
            f"bartizan-resume 1\noperation {mark.operation}\nsource {mark.source}\nsize {mark.size}\n"
            f"target {_word(mark.target)}\noffset {_word(mark.offset)}\n"
        )
        part = self.path + ".new"
        Path(part).unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("ascii"))
            file.flush()
            os.fsync(descriptor)
        os.rename(part, self.path)
        sync_folder(self.path)

    def remove(self) -> None:
        """Raises OSError."""
        os.unlink(self.path)
        sync_folder(self.path)


@final
class Checkpoints:
    """Saves a copy's offsets as they are reported."""

    def __init__(self, side: SideFile, mark: Mark) -> None:
        self._side = side
        self._mark = mark

    def save(self, offset: int | None) -> None:
        self._mark = replace(self._mark, offset=offset)
        self._side.save(self._mark)


def _operation(word: str) -> Operation:
    for known in get_args(Operation):
        if word == known:
            operation: Operation = known
            return operation
    raise ValueError(f"internal error: no operation {word}")


def _number(word: str) -> int | None:
    return None if word == "none" else int(word)


def _word(number: int | None) -> str:
    return "none" if number is None else str(number)
