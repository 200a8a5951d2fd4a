"""Two key servers with one database in a key provider: one stopped, both stopped, back; one that never answers."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.kms import KmsLayout, command
from tests.e2e.conftest import ROOT, Installation, Row, wait_until
from tests.e2e.small_vm import small_vm

pytestmark = pytest.mark.lab

NAME = "keys-01"


@pytest.fixture
def vm(installation: Installation) -> Iterator[str]:
    """Its encryption is undone by the test."""
    with small_vm(installation, NAME):
        yield NAME


@contextmanager
def second_server(installation: Installation) -> Iterator[int]:
    """Another PyKMIP process over the lab's key server's files: a pair that replicates."""
    layout = KmsLayout.load(installation.state / "lab" / "kms")
    process = subprocess.Popen(
        command(layout, port=0, name="kms-2"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def silent_listener() -> Iterator[int]:
    """A socket that takes connections and never answers: no key server, but what a hanging one looks like."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def provider(installation: Installation, name: str) -> str:
    (row,) = installation.rows("SELECT id FROM encryption_kmscluster WHERE name = %s", name)
    return f"/encryption/kms/{row['id']}/"


def press(installation: Installation, path: str, **values: Any) -> None:
    answer = installation.user.submit(installation.user.get(path), path, **values)
    assert answer.status == 200, answer.words()[:500]


def events(installation: Installation, kind: str, after: int) -> list[Row]:
    return installation.rows("SELECT * FROM inventory_event WHERE kind = %s AND id > %s ORDER BY id", kind, after)


def latest(installation: Installation) -> int:
    return int(installation.rows("SELECT MAX(id) AS id FROM inventory_event")[0]["id"])


def test_one_server_lost_both_lost_and_back(installation: Installation, vm: str) -> None:
    kms = provider(installation, "Lab KMS")
    guest = installation.guest("bios-01")
    installation.encrypt("bios-01", ["vdb"])
    installation.encrypt(vm, ["vda"])
    first = f"127.0.0.1:{KmsLayout.load(installation.state / 'lab' / 'kms').port}"
    beats = [int(guest.ask("heartbeat"))]
    try:
        with second_server(installation) as port:
            press(installation, f"{kms}servers/add/", host="127.0.0.1", port=port)
            start = latest(installation)
            installation.supervise("stop", "lab:kms")

            # Failover: the job goes well, and the history names the server that failed.
            installation.change_power(vm, "on")
            installation.change_power(vm, "off")
            (lost,) = events(installation, "kms.server_lost", start)
            assert first in lost["message"] and lost["data"]["code"] == "kms_unreachable"
            assert installation.user.get(kms).status == 200

        # Both are gone now.
        job = installation.change_power(vm, "on", "failed")
        assert job["error_code"] == "kms_unreachable" and first in job["message"] and f":{port}" in job["message"]
        page = installation.user.get(installation.path(vm))
        assert "Locked" in page.words()
        options = installation.user.get(installation.options_path(vm)).words()
        assert "KMS cluster error" in options and f":{port}" in options and "vda" in options
        (locked,) = events(installation, "vm.locked", start)
        assert locked["data"]["cause"] == "kms_error"
        assert installation.vm(vm)["power_state"] == "off"
        beats.append(int(guest.ask("heartbeat")))
        for path in ("/", "/encryption/kms/", kms, "/tasks/", installation.options_path("bios-01")):
            assert installation.user.get(path).status == 200, path

        with_a_hanging_provider(installation)

        # Back: the next look at the key servers unlocks it, and nobody has to press anything.
        installation.supervise("start", "lab:kms")
        wait_until("the key server listens", installation.key_server_listens)
        press(installation, f"{kms}check/")
        wait_until("it is unlocked by itself", lambda: events(installation, "vm.unlocked", start))
        installation.change_power(vm, "on")
        installation.change_power(vm, "off")
        beats.append(int(guest.ask("heartbeat")))
        assert beats == sorted(set(beats)), "the running VM stood still"
    finally:
        if not installation.key_server_listens():
            installation.supervise("start", "lab:kms")
            wait_until("the key server listens", installation.key_server_listens)
        servers = re.findall(r"servers/([0-9a-f-]{36})/remove/", installation.user.get(kms).text)
        for server in list(dict.fromkeys(servers))[1:]:
            press(installation, f"/encryption/kms/servers/{server}/remove/")
        installation.decrypt("bios-01")
        installation.decrypt(vm)


def with_a_hanging_provider(installation: Installation) -> None:
    """While workers wait for a key provider that never answers, jobs of others and pages go on."""
    trusted, certificate, sealed = installation.manage(
        "from encryption.models import KmsCluster\n"
        "c = KmsCluster.objects.get(name='Lab KMS')\n"
        "result = [c.trusted_pem, c.client_certificate_pem, bytes(c.client_key_sealed).hex()]"
    )
    with silent_listener() as first, silent_listener() as second, silent_listener() as third:
        press(installation, "/encryption/kms/add/", name="Hanging", host="127.0.0.1", port=first)
        hanging = provider(installation, "Hanging")
        for port in (second, third):  # each is waited for in turn, so that the job is there long enough
            press(installation, f"{hanging}servers/add/", host="127.0.0.1", port=port)
        installation.manage(
            "from encryption.models import KmsCluster\n"
            f"KmsCluster.objects.filter(name='Hanging').update(trusted_pem={trusted!r},"
            f" client_certificate_pem={certificate!r}, client_key_sealed=bytes.fromhex({sealed!r}))\n"
            "result = True"
        )
        press(installation, f"{hanging}check/")
        wait_until("a worker waits for it", lambda: _status(installation, "Hanging") == "running")
        installation.change_power("secureboot-01", "off")
        installation.change_power("secureboot-01", "on")
        assert installation.user.get(hanging).status == 200
        assert _status(installation, "Hanging") == "running", "the others' jobs waited for it"
        installation.user.submit(installation.user.get("/tasks/"), "/cancel/")
        wait_until("it ends", lambda: _status(installation, "Hanging") == "cancelled", 60)
    press(installation, f"{hanging}remove/")


def _status(installation: Installation, name: str) -> str:
    jobs = "SELECT status FROM inventory_job WHERE target_name = %s ORDER BY created_at DESC LIMIT 1"
    return str(installation.rows(jobs, name)[0]["status"])


def test_the_lab_is_as_before(installation: Installation) -> None:
    """The control: one server, no VM locked, no file left."""
    assert not installation.rows("SELECT 1 FROM encryption_vmsecurity WHERE locked_at IS NOT NULL")
    assert not list(Path(installation.folder("bios-01")).glob("*.luks"))
