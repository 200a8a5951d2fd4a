"""`./bartizan check`: everything that can be said about the code without running the product."""

import subprocess
import tempfile
import time
from pathlib import Path

from console.launch.crypto_start import FOLDER_VARIABLE

PACKAGES = ("console", "inventory", "encryption", "attestation", "lab", "tests", "manage.py")


def commands(root: Path) -> list[tuple[str, list[str]]]:
    """Name and command line of every check, in the order they run."""
    tools = root / ".venv" / "bin"
    python = str(tools / "python")
    return [
        ("format", [str(tools / "ruff"), "format", "--check", "."]),
        ("lint", [str(tools / "ruff"), "check", "."]),
        ("types", [python, "-m", "mypy", *PACKAGES]),
        ("imports", [str(tools / "lint-imports")]),
        ("migrations", [python, "manage.py", "makemigrations", "--check", "--dry-run"]),
        ("template lint", [str(tools / "djlint"), "--lint", "templates"]),
        ("deployment", [python, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]),
    ]


def run_checks(root: Path) -> bool:
    """Run all checks, show the output of those that fail, and sum up. True when all passed."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bartizan-check-") as folder:
        for name, command in commands(root):
            began = time.monotonic()
            done = subprocess.run(
                [
                    "env", "-u", FOLDER_VARIABLE, "BARTIZAN_FIPS=auto", f"BARTIZAN_TEST_STATE={folder}",
                    "DJANGO_SETTINGS_MODULE=tests.settings", "BARTIZAN_HTTPS=1", *command,
                ],
                cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", check=False,
            )  # fmt: skip
            passed = done.returncode == 0
            print(f"check {name:<18}{'passed' if passed else 'FAILED'} ({time.monotonic() - began:.1f} s)", flush=True)
            if not passed:
                failed.append(name)
                print(done.stdout.rstrip(), flush=True)
    print(f"check: {'all passed' if not failed else 'failed: ' + ', '.join(failed)}", flush=True)
    return not failed
