"""Set-up as named steps: each says what it does and how long it took, and is skipped when its result is there."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

NAME_WIDTH = 16
OUTPUT_LINES = 25  # of a failed command; the end holds the reason


class LaunchError(Exception):
    """Set-up or start cannot go on. `hint` says what to do; `details` is the output of what failed."""

    def __init__(self, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.details = details


class Steps:
    """Runs steps and prints a line for each.

    A step with a `key` (a digest of everything its result depends on) is skipped while the key of its last success
    stands in `stamps`. Without a key the step always runs.
    """

    def __init__(self, stamps: Path, out: TextIO | None = None) -> None:
        self._stamps = stamps
        self._out = sys.stdout if out is None else out

    def say(self, name: str, text: str) -> None:
        print(f"{name:<{NAME_WIDTH}}{text}", file=self._out, flush=True)

    def run(
        self,
        name: str,
        doing: str,
        action: Callable[[], str | None],
        *,
        key: str | None = None,
        result: Path | None = None,
    ) -> bool:
        """Run `action` unless `key` is the stamped one and `result`, where given, exists. True when it ran.

        The text that `action` returns is shown as its outcome. A step that raises leaves no stamp.
        """
        stamp = self._stamps / name.replace(" ", "-")
        if key is not None and (result is None or result.exists()) and _read(stamp) == key:
            self.say(name, "up to date")
            return False
        self.say(name, doing)
        stamp.unlink(missing_ok=True)
        began = time.monotonic()
        outcome = action()
        seconds = time.monotonic() - began
        self.say("", f"{outcome or 'done'} ({seconds:.1f} s)")
        if key is not None:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(key)
        return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def digest(files: Iterable[Path], *more: str) -> str:
    """SHA-256 over the names and contents of `files` (in the order of their names) and the texts `more`."""
    total = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        total.update(f"{file}\0{len(content)}\0".encode())
        total.update(content)
    for text in more:
        total.update(f"\0{text}".encode())
    return total.hexdigest()


def run_command(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None, what: str) -> str:
    """Run a command to its end and return what it wrote to standard output; `environment` None inherits ours.

    Raises LaunchError with the end of both streams when it cannot be run or fails.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True,
            errors="replace",
        )  # fmt: skip
    except OSError as exc:
        raise LaunchError(f"{what}: cannot run {command[0]}: {exc.strerror}") from exc
    if done.returncode != 0:
        said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        raise LaunchError(f"{what} failed with exit code {done.returncode}", details="\n".join(said[-OUTPUT_LINES:]))
    return done.stdout
