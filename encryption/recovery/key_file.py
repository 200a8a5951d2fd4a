"""A passphrase from a file.

The file holds the passphrase as text. ONE line end (LF or CR LF) at its end is not part of it, because editors and
`echo` put one there; `cryptsetup --key-file` and QEMU's `secret` object would take it as part of the passphrase. A
passphrase that does end in a line end is written with a second one.
"""

import os
import stat
from pathlib import Path

from encryption.engine.luks import MAX_PASSPHRASE_BYTES
from encryption.engine.secret import Secret
from encryption.recovery.report import Report
from inventory.errors import Invalid, NotFound, Unavailable

_LINE_END_BYTES = 2


def read_passphrase(path: Path, report: Report) -> Secret:
    """The passphrase in `path`, which may be a pipe. Notes a file that others can read.

    Raises NotFound (key_file_missing), Unavailable (key_file_unreadable), Invalid (key_file_empty, key_file_too_long).
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PASSPHRASE_BYTES + _LINE_END_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        raise NotFound("key_file_missing", f"there is no key file {path}") from None
    except OSError as exc:
        raise Unavailable("key_file_unreadable", f"cannot read the key file {path}: {exc.strerror}") from exc
    if stat.S_ISREG(mode) and mode & 0o077:
        report.note(f"{path} can be read by others: chmod 600 it")
    for line_end in (b"\r\n", b"\n"):
        if content.endswith(line_end):
            content = content[: -len(line_end)]
            break
    if not content:
        raise Invalid("key_file_empty", f"the key file {path} is empty", hint="it holds the passphrase as text")
    if len(content) > MAX_PASSPHRASE_BYTES:
        raise Invalid(
            "key_file_too_long",
            f"the key file {path} holds more than {MAX_PASSPHRASE_BYTES} bytes",
            hint="it holds the passphrase as text, and nothing else",
        )
    return Secret(content)
