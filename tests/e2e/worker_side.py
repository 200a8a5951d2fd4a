"""Python on the workers' side of an installation, with the console key: one process for many snippets."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

# Each line is a snippet in JSON; what it leaves in `result` is told.
_LOOP: Final = """
import json, sys, traceback
from django.db import close_old_connections
for line in sys.stdin:
    close_old_connections()
    names = {}
    try:
        exec(json.loads(line), names)
        told = {"result": names["result"]}
    except BaseException:
        told = {"failed": traceback.format_exc()}
    print("RESULT " + json.dumps(told), flush=True)
"""


@dataclass
class WorkerSide:
    """`manage shell` as `command` starts it, from the first snippet on."""

    command: Sequence[str]
    environment: Mapping[str, str]
    _process: "subprocess.Popen[str] | None" = field(default=None, init=False)

    def run(self, code: str) -> Any:
        """What the snippet leaves in `result`. Names do not outlive it."""
        if self._process is None:
            self._process = subprocess.Popen(
                [*self.command, "shell", "-v", "0", "-c", _LOOP], env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        said: list[str] = []
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                told = json.loads(line.removeprefix("RESULT "))
                assert "failed" not in told, "".join(said) + told["failed"]
                return told["result"]
            said.append(line)
        raise AssertionError("it has ended: " + "".join(said))

    def end(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()
            self._process = None
