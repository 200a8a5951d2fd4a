"""The lab's key server as a program: its files, its user, its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from lab import kms
from lab.errors import LabError
from lab.pki import Authority
from lab.user import ensure_user
from tests.encryption.adapters.conftest import ROOT, serving


@pytest.fixture
def state() -> Iterator[Path]:
    # Not pytest's own folder: as root the server runs as another user, who has to reach its files.
    base = Path(tempfile.mkdtemp(prefix="kms-", dir="/var/tmp"))
    base.chmod(0o755)
    try:
        yield base / "kms"
    finally:
        shutil.rmtree(base)


def test_prepare_keeps_what_is_there(state: Path) -> None:
    first = kms.prepare(state, 5696)
    certificate = first.server_certificate.read_bytes()
    second = kms.prepare(state, 5697)
    assert second.server_certificate.read_bytes() == certificate
    assert kms.KmsLayout.load(state).port == 5697
    assert state.stat().st_mode & 0o777 == 0o700
    assert first.server_key.stat().st_mode & 0o777 == 0o600
    assert first.server_key.stat().st_uid == ensure_user().uid
    # The key server does not get the key of the CA that vouches for it.
    assert (first.ca / "ca-key.pem").stat().st_uid == os.geteuid()


def test_certificate_of_the_server(state: Path) -> None:
    layout = kms.prepare(state, 5696)
    certificate = x509.load_pem_x509_certificate(layout.server_certificate.read_bytes())
    assert kms.CA_NAME in certificate.issuer.rfc4514_string()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_a_given_authority_issues_and_is_trusted(state: Path, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, "Lab CA")
    layout = kms.prepare(state, 5696, authority)
    assert (layout.clients / "lab-ca.pem").read_bytes() == authority.certificate_pem
    with pytest.raises(LabError):
        kms.issue_client(layout, "console")


def test_serves_as_the_lab_user_and_ends_on_a_signal(state: Path) -> None:
    layout = kms.prepare(state, 5696)
    with serving(layout) as running:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
        assert set(uids) == {str(ensure_user().uid)}
        with running.client() as client:
            client.create_key(name="x")
            running.process.terminate()  # with a client still connected
            assert running.process.wait(30) == 0
    assert layout.database.stat().st_mode & 0o777 == 0o600
    assert (state / "kms.log").read_text() == ""


def test_a_folder_that_was_not_prepared(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lab.kms", "--state", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1
    assert "cannot serve" in run.stderr


def test_keys_survive_a_restart(state: Path) -> None:
    layout = kms.prepare(state, 5696)
    with serving(layout, "first") as running, running.client() as client:
        key_id = client.create_key(name="x")
        key = client.get_key(key_id)
    with serving(layout, "second") as running, running.client() as client:
        assert client.get_key(key_id) == key
