"""The crypto inventory through page and API: made and signed by a worker, verified without the console."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pytest_django import Settings

from attestation.models import Verdict
from encryption.engine.crypto_inventory import FORMAT, BadInventory, signed_bytes, verify
from encryption.models import CryptoInventory, Key, KmsCluster, StoragePolicy, VmSecurity, WrappedSecret
from encryption.services import crypto_inventory
from encryption.tasks import make_inventory
from inventory.models import AuditKey, Disk, Event, Host, Job, JobStatus, VirtualMachine
from tests.api_client import caller

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = "encryption:crypto-inventories"


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """An encrypted disk, a plain one, a CD-ROM, encrypted NVRAM, a vTPM, and a disk that was detached."""
    Host.objects.update(hypervisor="QEMU", hypervisor_version="9.2.0")
    found = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="secret-vm", nvram_path="/nvram", is_nvram_encrypted=True, tpm_model="tpm-crb",
        is_tpm_encrypted=True,
    )  # fmt: skip
    for target, device, is_encrypted in (("vda", "disk", True), ("vdb", "disk", False), ("sda", "cdrom", False)):
        Disk.objects.create(
            virtual_machine=found, target=target, device=device, source=f"/images/{target}", is_encrypted=is_encrypted
        )
    kms = KmsCluster.objects.create(name="Main KMS")
    key = Key.objects.create(cluster=kms, key_id="kek-1", state=Key.State.ACTIVE)
    Key.objects.update(created_at=timezone.now() - timedelta(days=40, hours=1))
    verdict = Verdict.objects.create(
        host=host, status="passed", message="ok", reason="gate", checked_at=timezone.now() - timedelta(hours=2)
    )
    policy = StoragePolicy.objects.filter(encrypts=True)[0]
    VmSecurity.objects.create(
        virtual_machine=found, policy=policy, key=key, released_at=timezone.now(), released_host="kvm-a",
        released_verdict=verdict.pk,
    )  # fmt: skip
    for purpose, target, stage in (
        ("disk", "vda", "in_use"), ("nvram", "", "in_use"), ("vtpm", "", "in_use"), ("disk", "vdc", "detached"),
    ):  # fmt: skip
        WrappedSecret.objects.create(
            virtual_machine=found, purpose=purpose, target=target, key=key, wrapped=b"\x01" * 40, stage=stage,
            path=f"/images/{purpose}{target}.luks",
        )  # fmt: skip
    return found


def run(job: Job) -> Job:
    make_inventory(str(job.pk))
    job.refresh_from_db()
    return job


def made(actor: User) -> CryptoInventory:
    job = run(crypto_inventory.request_inventory(actor=actor))
    assert job.status == JobStatus.SUCCEEDED, job.message
    return CryptoInventory.objects.get(pk=job.target_id)


def test_made_and_downloaded_by_the_page(admin: Client, vm: VirtualMachine, sent: object) -> None:
    assert "None was made yet" in admin.get(reverse(PAGE)).content.decode()
    answer = admin.post(reverse("encryption:make-crypto-inventory"))
    assert answer.headers["Location"] == reverse(PAGE)
    row = CryptoInventory.objects.get()
    assert "Not made" in admin.get(reverse(PAGE)).content.decode()
    assert admin.get(reverse("encryption:download-crypto-inventory", args=[row.pk])).status_code == 409
    assert admin.post(reverse("encryption:make-crypto-inventory")).status_code == 409, "one at a time"
    run(Job.objects.get())
    page = admin.get(reverse(PAGE)).content.decode()
    answer = admin.get(reverse("encryption:download-crypto-inventory", args=[row.pk]))
    assert "attachment" in answer.headers["Content-Disposition"] and "no-store" in answer.headers["Cache-Control"]
    pem = admin.get(reverse("encryption:audit-key")).content.decode()
    key = AuditKey.objects.get()
    assert pem == key.public_pem and key.fingerprint in page
    found = verify(answer.content, known=[key.fingerprint])
    assert (found.virtual_machines, found.encrypted_parts, found.made_by) == (1, 4, "alice")
    kinds = list(
        Event.objects.filter(kind__startswith="crypto_inventory.").order_by("id").values_list("kind", flat=True)
    )
    assert kinds == ["crypto_inventory.requested", "crypto_inventory.made", "crypto_inventory.downloaded"]


def test_what_it_says(alice: User, vm: VirtualMachine, sent: object) -> None:
    row = made(alice)
    found = json.loads(row.content)
    assert found["format"] == FORMAT and found["inventory"]["made_by"] == "alice"
    assert "OpenSSL" in found["inventory"]["modules"]["console"]
    assert found["inventory"]["key_providers"][0]["name"] == "Main KMS"
    (machine,) = found["inventory"]["virtual_machines"]
    assert (machine["name"], machine["host"], machine["is_locked"]) == ("secret-vm", "kvm-a", False)
    assert machine["last_release"]["host"] == "kvm-a" and machine["last_release"]["verdict"]["status"] == "passed"
    parts = {part["part"]: part for part in machine["parts"]}
    assert list(parts) == ["vda", "vdb", "nvram", "vtpm", "detached vdc"]
    vda = parts["vda"]
    assert (vda["key_id"], vda["key_provider"], vda["key_state"]) == ("kek-1", "Main KMS", "active")
    assert (vda["key_age_days"], vda["cipher"]) == (40, "aes-xts-plain64, 512-bit key, LUKS1")
    assert vda["module"] == "QEMU 9.2.0 on kvm-a"
    assert parts["vtpm"]["module"] == "swtpm on kvm-a" and "aes-256-cbc" in parts["vtpm"]["cipher"]
    assert (parts["vdb"]["is_encrypted"], parts["vdb"]["cipher"], parts["vdb"]["key_id"]) == (False, None, None)
    assert "0101" not in row.content and "AQEB" not in row.content, "no wrapped key"


def test_a_verdict_that_is_gone_and_a_foreign_disk(alice: User, vm: VirtualMachine, sent: object) -> None:
    Verdict.objects.all().delete()
    Disk.objects.filter(target="vdb").update(is_encrypted=True)
    (machine,) = json.loads(made(alice).content)["inventory"]["virtual_machines"]
    assert machine["last_release"]["verdict"]["status"] is None
    assert next(part for part in machine["parts"] if part["part"] == "vdb")["cipher"] == "not known to this console"


def test_the_api(alice: User, charlie: User, vm: VirtualMachine, sent: object) -> None:
    api = caller(alice)
    answer = api.post("/crypto-inventories")
    assert answer.status == 202 and answer.body["kind"] == "encryption.make_inventory"
    row_id = answer.body["target"]["id"]
    assert api.post("/crypto-inventories").code == "crypto_inventory_waits"
    assert api.get(f"/crypto-inventories/{row_id}/file").code == "crypto_inventory_not_made"
    run(Job.objects.get())
    assert api.get("/crypto-inventories").body["items"][0]["encrypted_parts"] == 4
    assert api.get(f"/crypto-inventories/{row_id}").body["key"] == AuditKey.objects.get().fingerprint
    text = caller(charlie).get(f"/crypto-inventories/{row_id}/file").text
    assert verify(text.encode()).key == AuditKey.objects.get().fingerprint
    told = Event.objects.get(kind="crypto_inventory.downloaded")
    assert told.actor == "charlie"
    for path in (f"/crypto-inventories/{uuid4()}", f"/crypto-inventories/{uuid4()}/file"):
        assert api.get(path).code == "crypto_inventory_not_found"


def test_who_has_no_right_to_it(db: None, client: Client) -> None:
    dora = User.objects.create_user("dora")
    client.force_login(dora)
    for name in (PAGE, "encryption:make-crypto-inventory"):
        assert client.get(reverse(name)).status_code == 403
    assert client.post(reverse("encryption:make-crypto-inventory")).status_code == 403
    assert caller(dora).post("/crypto-inventories").status == 403
    assert not CryptoInventory.objects.exists()


def test_a_worker_without_the_console_key_says_so(alice: User, settings: Settings, sent: object) -> None:
    settings.CONSOLE_KEY = ""
    job = run(crypto_inventory.request_inventory(actor=alice))
    assert (job.status, job.error_code) == (JobStatus.FAILED, "console_key_missing")
    assert CryptoInventory.objects.get().made_at is None


def test_a_message_that_comes_twice_makes_it_once(alice: User, vm: VirtualMachine, sent: object) -> None:
    row = made(alice)
    job = Job.objects.get()
    Job.objects.update(status=JobStatus.PENDING)
    run(job)
    assert CryptoInventory.objects.get().content == row.content


def test_the_last_ones_are_kept(alice: User, monkeypatch: pytest.MonkeyPatch, sent: object) -> None:
    monkeypatch.setattr(crypto_inventory, "KEPT", 2)
    rows = [made(alice).pk for _ in range(3)]
    assert set(CryptoInventory.objects.values_list("pk", flat=True)) == set(rows[1:])


def test_queries_do_not_grow_with_the_number_of_vms(alice: User, host: Host, vm: VirtualMachine, sent: object) -> None:
    def queries() -> int:
        job = crypto_inventory.request_inventory(actor=alice)
        with CaptureQueriesContext(connection) as found:
            run(job)
        return len(found)

    made(alice)
    before = queries()
    for number in range(20):
        one = VirtualMachine.objects.create(host=host, uuid=uuid4(), name=f"vm-{number}")
        Disk.objects.create(virtual_machine=one, target="vda")
    assert queries() == before


@pytest.fixture
def file(alice: User, vm: VirtualMachine, sent: object, tmp_path: Path) -> Path:
    found = tmp_path / "inventory.json"
    found.write_text(made(alice).content)
    return found


def command(*arguments: str | Path) -> tuple[int, str]:
    out, code = StringIO(), 0
    try:
        call_command("verify_inventory", *map(str, arguments), stdout=out, stderr=out)
    except SystemExit as exc:
        code = int(exc.code or 0)
    return code, out.getvalue()


def test_the_command(file: Path, tmp_path: Path) -> None:
    key = AuditKey.objects.get()
    (tmp_path / "key.pem").write_text(key.public_pem)
    assert command(file, "--key", key.fingerprint.upper())[0] == 0
    code, text = command(file, "--public-key", tmp_path / "key.pem", "--json")
    assert code == 0 and json.loads(text)["virtual_machines"] == 1
    code, text = command(file)
    assert code == 2 and "whose key that is cannot be said" in text
    code, text = command(file, "--key", "ab" * 32)
    assert code == 1 and "key_unknown" in text
    file.write_text(file.read_text().replace('"is_encrypted": false', '"is_encrypted": true'))
    code, text = command(file, "--json", "--key", key.fingerprint)
    assert code == 1 and json.loads(text)["code"] == "signature_wrong"
    assert command(tmp_path / "nowhere") == (
        2,
        f"{tmp_path / 'nowhere'} cannot be read: FileNotFoundError (file_unreadable)\n",
    )
    (tmp_path / "key.pem").write_text("no key")
    assert "key_unreadable" in command(file, "--public-key", tmp_path / "key.pem")[1]


@pytest.mark.slow
def test_the_command_needs_nothing_of_the_console(file: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "console.recovery_settings"}  # noqa: TID251
    key = AuditKey.objects.get().fingerprint
    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "verify-inventory", str(file), "--key", key],
        env=environment, capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 encrypted parts" in done.stdout


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [found for name, one in value.items() for found in leaves(one, (*path, name))]
    if isinstance(value, list):
        return [found for place, one in enumerate(value) for found in leaves(one, (*path, place))]
    return [path]


def test_any_changed_value_is_found(file: Path) -> None:
    content = json.loads(file.read_text())
    for path in leaves(content["inventory"]):
        changed = json.loads(file.read_text())
        place = changed["inventory"]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = "changed"
        with pytest.raises(BadInventory) as caught:
            verify(json.dumps(changed).encode())
        assert caught.value.code == "signature_wrong", path


@given(content=st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["format", "inventory", "signature", "key", "public_key", "value"]), inner, max_size=4
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@examples(max_examples=60, deadline=None)
def test_hostile_files_are_refused_with_a_code(content: bytes) -> None:
    with pytest.raises(BadInventory):
        verify(content)


def test_odd_files_are_refused() -> None:
    for content in (b"[" * 100_000, b'{"format": 1, "format": 2}', json.dumps(
        {"format": FORMAT, "inventory": {}, "signature": {"key": "k", "public_key": "p", "value": "v"}}
    ).encode()):  # fmt: skip
        with pytest.raises(BadInventory) as caught:
            verify(content)
        assert caught.value.code == "not_an_inventory"


def test_what_is_signed_is_fixed() -> None:
    """Old files must stay verifiable."""
    assert signed_bytes({"b": "é", "a": [1, None, True]}) == (
        b'bartizan-crypto-inventory-1\n{"a":[1,null,true],"b":"\\u00e9"}'
    )
