"""Each OpenSSL of a process in its own copy of the FIPS provider, or no process at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from console.launch import crypto
from console.launch.crypto_start import EXIT_CODE, FOLDER_VARIABLE
from tests.console.crypto.conftest import ROOT

LOOK = """
import json, os, ssl, _hashlib
from cryptography.hazmat.bindings._rust import openssl
from encryption.adapters import crypto_modules
try:
    _hashlib.openssl_md5(b"")
    md5 = "taken"
except ValueError:
    md5 = "refused"
if (child := os.fork()) == 0:
    os._exit(0 if all(test.passed for test in crypto_modules.run_self_tests()) else 1)
forked = os.waitpid(child, 0)[1]
tests = crypto_modules.run_self_tests()
print(json.dumps({
    "active": crypto_modules.is_active(), "md5": md5, "inherited": os.environ.get("OPENSSL_CONF"),
    "failed": [test.name for test in tests if not test.passed],
    "tests": [f"{test.boundary}: {test.name}" for test in tests],
    "providers": [[one.provider, one.provider_file, one.sha256]
        for one in crypto_modules.boundaries(database="", broker="") if one.is_tested],
    "fork": forked,
    "tls": [[context.minimum_version.name, [suite["name"] for suite in context.get_ciphers()]]
        for context in (ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))],
}))
"""


def run(code: str, folder: Path | None, **more: str) -> subprocess.CompletedProcess[str]:
    """A Python of this venv, as set-up starts all of them."""
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)} | more
    if folder is not None:
        environment[FOLDER_VARIABLE] = str(folder)
    return subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_both_libraries_compute_in_copies_of_their_own(provider: Path) -> None:
    done = run(LOOK, provider)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["active"]
    assert found["failed"] == []
    assert found["md5"] == "refused"
    assert found["inherited"] is None  # programs that are started from here keep their own configuration
    assert found["fork"] == 0  # a pool's process computes in them too
    for boundary in ("cryptography package", "system OpenSSL"):
        for refused in ("MD5", "ChaCha20-Poly1305"):
            assert f"{boundary}: {refused} refused" in found["tests"]
    for version, suites in found["tls"]:  # of contexts that others make
        assert version == "TLSv1_2"
        assert suites
        assert all("GCM" in suite and suite.startswith(("TLS_AES", "ECDHE-")) for suite in suites)
    digest = json.loads((provider / crypto.RECORD).read_text())["sha256"]
    files = {file for _, file, _ in found["providers"]}
    assert files == {str(provider / "system" / "fips.so"), str(provider / "wheel" / "fips.so")}
    assert {sha256 for _, _, sha256 in found["providers"]} == {digest}
    assert any(name.startswith("OpenSSL FIPS Provider 3.") for name, _, _ in found["providers"])


def test_without_the_variable_nothing_is_loaded() -> None:
    done = run(LOOK, None)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["active"]
    assert found["failed"] == []
    assert not any("refused" in test for test in found["tests"])


def test_mode_off_loads_nothing(provider: Path) -> None:
    done = run("import _hashlib; print(_hashlib.get_fips_mode())", provider, BARTIZAN_FIPS="off")
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.parametrize("which", ["system", "wheel"])
def test_one_flipped_byte_stops_the_start(provider: Path, which: str) -> None:
    module = provider / which / "fips.so"
    content = bytearray(module.read_bytes())
    aside = provider / "aside.so"
    module.rename(aside)
    content[len(content) // 3] ^= 1
    module.write_bytes(content)
    try:
        _assert_stopped(run("print('went on')", provider), provider)
    finally:
        aside.replace(module)


def test_a_missing_copy_stops_the_start(provider: Path) -> None:
    module = provider / "wheel" / "fips.so"
    aside = provider / "aside.so"
    module.rename(aside)
    try:
        _assert_stopped(run("print('went on')", provider), provider)
    finally:
        aside.replace(module)


def test_one_copy_for_both_libraries_stops_the_start(provider: Path, tmp_path: Path) -> None:
    """The provider keeps state for the whole process: loaded twice from one file, the second library breaks."""
    folder = tmp_path / "crypto"
    shutil.copytree(provider, folder)
    for file in folder.glob("*/*.cnf"):
        file.write_text(file.read_text().replace(str(provider), str(folder)))
    (folder / "wheel" / "fips.so").unlink()
    (folder / "wheel" / "fips.so").hardlink_to(folder / "system" / "fips.so")
    _assert_stopped(run("print('went on')", folder), folder)


def _assert_stopped(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == EXIT_CODE
    assert done.stdout == ""
    assert "the FIPS provider in" in done.stderr
    assert "cannot be used" in done.stderr
    assert f"remove {folder} and start again" in done.stderr


@pytest.mark.slow
def test_required_without_a_provider_starts_no_process(tmp_path: Path) -> None:
    done = run(
        "import django; django.setup()", None,
        DJANGO_SETTINGS_MODULE="tests.settings", BARTIZAN_TEST_STATE=str(tmp_path), BARTIZAN_FIPS="required",
    )  # fmt: skip
    assert done.returncode != 0
    assert "BARTIZAN_FIPS=required, and this process has no FIPS provider" in done.stderr


@pytest.mark.slow
def test_a_process_outside_of_the_venv_does_not_pass_for_one_with_the_provider(provider: Path, tmp_path: Path) -> None:
    """`-S` leaves out what the venv's site-packages would have done first, as another Python would."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {
        "PATH": os.defpath, "PYTHONPATH": f"{ROOT}:{packages}", FOLDER_VARIABLE: str(provider),
        "DJANGO_SETTINGS_MODULE": "tests.settings", "BARTIZAN_TEST_STATE": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import django; django.setup()"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"this process has not loaded the FIPS provider in {provider}" in done.stderr


def test_this_run_is_what_it_says_to_be() -> None:
    from django.conf import settings

    from encryption.adapters import crypto_modules

    if settings.FIPS_MODE == "required":
        assert crypto_modules.is_active()
    assert all(test.passed for test in crypto_modules.run_self_tests())
