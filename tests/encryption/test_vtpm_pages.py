"""The vTPM through its URLs and the API: each refusal by both, who may, and that what is shown fits."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.engine.endorsement import Endorsement
from encryption.models import Compliance, VtpmEndorsement
from inventory.models import Event, Firmware, Host, Job, PowerState, VirtualMachine
from tests.api_client import caller
from tests.encryption.real_tpm import certificate_for, endorsements, make_state
from tests.encryption.world import provider

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
RSA = 0x01C00002


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Endorsement, ...]:
    folder: Path = tmp_path_factory.mktemp("tpm")
    make_state(folder / "tpm2")
    return endorsements(folder / "tpm2")


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Plain, off, UEFI, no TPM; there is a key provider."""
    provider()
    host.vtpm_state_path = "/swtpm"
    host.save()
    return VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF, firmware=Firmware.UEFI,
        nvram_path="/nvram/app-01.fd",
    )  # fmt: skip


@pytest.fixture
def with_tpm(vm: VirtualMachine, keys: tuple[Endorsement, ...]) -> Iterator[VirtualMachine]:
    vm.tpm_model, vm.tpm_version = "tpm-crb", "2.0"
    vm.save()
    for one in keys:
        VtpmEndorsement.objects.create(
            virtual_machine=vm, kind=one.kind, nv_index=one.index, certificate=one.certificate,
            public_key=one.public_key, read_at=datetime(2026, 1, 2, tzinfo=UTC),
        )  # fmt: skip
    yield vm


@pytest.fixture
def admin(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def url(name: str, *args: object) -> str:
    return reverse(f"encryption:{name}", args=args)


def page(client: Client, vm: VirtualMachine) -> str:
    return client.get(url("vm-vtpm", vm.pk)).content.decode()


def test_add_shows_its_plan_and_starts_one_job(admin: Client, alice: User, vm: VirtualMachine) -> None:
    assert "This virtual machine has no TPM" in page(admin, vm) and url("add-vtpm", vm.pk) in page(admin, vm)
    dialog = admin.get(url("add-vtpm", vm.pk)).content.decode()
    assert "encrypted from the first byte" in dialog and "encrypted because of the vTPM" in dialog
    answer = caller(alice).get(f"/virtual-machines/{vm.pk}/vtpm/plan?present=true")
    assert "add_vtpm" in [step["kind"] for step in answer.body["steps"]] and not answer.body["refusals"]
    assert admin.post(url("add-vtpm", vm.pk)).status_code == 302
    job = Job.objects.get()
    assert job.kind == "encryption.apply_options" and job.params["vtpm"] is True
    assert caller(alice).post(f"/virtual-machines/{vm.pk}/vtpm").code == "target_busy"
    assert Event.objects.filter(kind="vm.options_requested").count() == 1
    job.delete()
    assert caller(alice).post(f"/virtual-machines/{vm.pk}/vtpm").status == 202


def test_what_changed_since_the_dialog_was_opened_is_not_applied(admin: Client, vm: VirtualMachine) -> None:
    digest = re.search(r'name="plan_digest" value="(\w{64})"', admin.get(url("add-vtpm", vm.pk)).content.decode())
    assert digest is not None
    VirtualMachine.objects.update(definition_sha256="1" * 64)
    answer = admin.post(url("add-vtpm", vm.pk), {"plan_digest": digest[1]})
    assert answer.status_code == 409 and not Job.objects.exists()
    again = re.search(r'name="plan_digest" value="(\w{64})"', answer.content.decode())
    assert again is not None and again[1] != digest[1], "the plan as it is now is shown"
    assert admin.post(url("add-vtpm", vm.pk), {"plan_digest": again[1]}).status_code == 302


@pytest.mark.parametrize(
    ("change", "host_change", "code"),
    [
        ({"firmware": Firmware.BIOS, "nvram_path": ""}, {}, "vtpm_needs_uefi"),
        ({"power_state": PowerState.ON}, {}, "vtpm_needs_power_off"),
        ({"has_managed_save": True}, {}, "managed_save_present"),
        ({"is_present": False}, {}, "vm_gone"),
        ({}, {"vtpm_state_path": "", "uri": "qemu:///session?socket=/x"}, "vtpm_state_unknown"),
    ],
)
def test_add_refused(
    admin: Client, alice: User, vm: VirtualMachine, change: dict[str, object], host_change: dict[str, object], code: str
) -> None:
    VirtualMachine.objects.update(**change)
    Host.objects.update(**host_change)
    answer = admin.post(url("add-vtpm", vm.pk))
    api = caller(alice).post(f"/virtual-machines/{vm.pk}/vtpm")
    assert (answer.status_code, api.status, api.code) == (409, 409, code)
    assert not Job.objects.exists()


def test_without_a_key_provider(admin: Client, alice: User, vm: VirtualMachine) -> None:
    from encryption.models import KmsCluster

    KmsCluster.objects.all().delete()
    assert "no key provider" in admin.get(url("add-vtpm", vm.pk)).content.decode()
    assert admin.post(url("add-vtpm", vm.pk)).status_code == 409
    assert caller(alice).post(f"/virtual-machines/{vm.pk}/vtpm").code == "no_key_provider"
    assert not Job.objects.exists()


def test_remove_wants_the_vms_name(admin: Client, alice: User, with_tpm: VirtualMachine) -> None:
    address, path = url("remove-vtpm", with_tpm.pk), f"/virtual-machines/{with_tpm.pk}/vtpm/remove"
    dialog = admin.get(address).content.decode()
    for word in ("BitLocker", "Windows Hello", "credentials"):
        assert word in dialog
    for wrong in ("", "app-02"):
        assert admin.post(address, {"confirm": wrong}).status_code == 422
        assert caller(alice).post(path, {"confirm": wrong}).code == "confirmation_mismatch"
    assert not Job.objects.exists()
    assert admin.post(address, {"confirm": "app-01"}).status_code == 302
    assert Job.objects.get().params["vtpm"] is False
    assert caller(alice).post(path, {"confirm": "app-01"}).code == "target_busy"


def test_remove_from_a_running_vm(admin: Client, alice: User, with_tpm: VirtualMachine) -> None:
    VirtualMachine.objects.update(power_state=PowerState.ON)
    address, path = url("remove-vtpm", with_tpm.pk), f"/virtual-machines/{with_tpm.pk}/vtpm/remove"
    assert admin.post(address, {"confirm": "app-01"}).status_code == 409
    assert caller(alice).post(path, {"confirm": "app-01"}).code == "vtpm_needs_power_off"


def test_what_is_shown(admin: Client, alice: User, with_tpm: VirtualMachine, keys: tuple[Endorsement, ...]) -> None:
    seen = [{"part": "vtpm", "state": "encrypted", "evidence": "vtpm: flags 0x0009, 256-bit key"}]
    Compliance.objects.create(
        virtual_machine=with_tpm, observations=seen, checked_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    )
    VirtualMachine.objects.update(is_tpm_encrypted=True)
    shown = page(admin, with_tpm)
    for text in ("flags 0x0009", "2026-03-04 05:06:07", "CN=swtpm-localca", "RSA 2048", "ECC P-384", "cannot sign"):
        assert text in shown
    body = caller(alice).get(f"/virtual-machines/{with_tpm.pk}/vtpm").body
    assert body["is_present"] and body["is_encrypted"] and body["evidence"] == "vtpm: flags 0x0009, 256-bit key"
    assert [one["kind"] for one in body["endorsement_keys"]] == ["RSA 2048", "ECC P-384"]
    assert all(one["names_its_key"] and len(one["fingerprint"]) == 64 for one in body["endorsement_keys"])
    VtpmEndorsement.objects.filter(nv_index=RSA).update(certificate=b"what a guest wrote")
    assert "Not readable" in page(admin, with_tpm)
    assert admin.get(url("vtpm-download", with_tpm.pk, RSA, "certificate.pem")).status_code == 409
    VtpmEndorsement.objects.all().delete()
    assert "Not read yet" in page(admin, with_tpm)


def test_plain_state_is_warned_of(admin: Client, with_tpm: VirtualMachine) -> None:
    assert "Not encrypted" in page(admin, with_tpm) and "the state is converted" in page(admin, with_tpm)


def test_files(admin: Client, alice: User, with_tpm: VirtualMachine, keys: tuple[Endorsement, ...]) -> None:
    def file(what: str) -> tuple[int, bytes, str]:
        answer = admin.get(url("vtpm-download", with_tpm.pk, RSA, what))
        return answer.status_code, answer.content, answer.headers.get("Content-Disposition", "")

    assert file("certificate.der")[:2] == (200, keys[0].certificate)
    assert file("certificate.der")[2] == 'attachment; filename="app-01-ek-rsa-2048.der"'
    assert file("certificate.pem")[1].startswith(b"-----BEGIN CERTIFICATE-----")
    assert file("key.pem")[1].startswith(b"-----BEGIN PUBLIC KEY-----")
    assert file("other")[0] == 404
    assert admin.get(url("vtpm-download", with_tpm.pk, 7, "key.pem")).status_code == 404
    path = f"/virtual-machines/{with_tpm.pk}/vtpm/certificates"
    assert caller(alice).get(f"{path}/7/key.pem").code == "vtpm_certificate_not_found"
    VtpmEndorsement.objects.update(certificate=b"")
    assert file("certificate.der")[0] == 404 and "No certificate in the TPM" in page(admin, with_tpm)


def test_read(admin: Client, alice: User, with_tpm: VirtualMachine) -> None:
    address, path = url("vtpm-read", with_tpm.pk), f"/virtual-machines/{with_tpm.pk}/vtpm/certificates/read"
    assert admin.get(address).status_code == 200
    assert admin.post(address).status_code == 302
    assert Job.objects.get().kind == "encryption.read_vtpm"
    assert caller(alice).post(path).code == "target_busy"
    Job.objects.all().delete()
    for change, host_change, code in (
        ({"tpm_model": ""}, {}, "vtpm_missing"),
        ({"tpm_model": "tpm-tis", "tpm_version": "1.2"}, {}, "vtpm_missing"),
        ({}, {"state": Host.State.DISCONNECTED}, "host_disconnected"),
        ({"is_present": False}, {}, "vm_gone"),
    ):
        VirtualMachine.objects.update(**change)
        Host.objects.update(**host_change)
        answer = caller(alice).post(path)
        assert (admin.post(address).status_code, answer.status, answer.code) == (409, 409, code)
        VirtualMachine.objects.update(tpm_model="tpm-crb", tpm_version="2.0", is_present=True)
        Host.objects.update(state=Host.State.CONNECTED)
    assert not Job.objects.exists()


def test_replace(admin: Client, alice: User, with_tpm: VirtualMachine, keys: tuple[Endorsement, ...]) -> None:
    address, path = url("vtpm-replace", with_tpm.pk, RSA), f"/virtual-machines/{with_tpm.pk}/vtpm/certificates/{RSA}"
    good = certificate_for(keys[0].public_key).decode()

    def both(text: str) -> tuple[int, int, str]:
        answer = caller(alice)("PUT", path, {"certificate_pem": text})
        return admin.post(address, {"certificate": text}).status_code, answer.status, answer.code

    assert both("nonsense") == (422, 422, "certificate_malformed")
    assert both(certificate_for(keys[1].public_key).decode()) == (422, 422, "certificate_of_another_key")
    assert both(certificate_for(keys[0].public_key, days=-1).decode()) == (422, 422, "certificate_not_valid_now")
    VirtualMachine.objects.update(power_state=PowerState.ON)
    assert both(good) == (409, 409, "vm_running")
    VirtualMachine.objects.update(power_state=PowerState.OFF)
    unknown = caller(alice)("PUT", f"/virtual-machines/{with_tpm.pk}/vtpm/certificates/7", {"certificate_pem": good})
    assert unknown.code == "vtpm_certificate_not_found" and not Job.objects.exists()
    assert admin.post(address, {"certificate": good}).status_code == 302
    assert Job.objects.get().params["nv_index"] == RSA
    assert caller(alice)("PUT", path, {"certificate_pem": good}).code == "target_busy"


def test_who_may_not(charlie: User, with_tpm: VirtualMachine, keys: tuple[Endorsement, ...]) -> None:
    looker, api, path = Client(), caller(charlie), f"/virtual-machines/{with_tpm.pk}/vtpm"
    looker.force_login(charlie)
    shown = page(looker, with_tpm)
    assert "RSA 2048" in shown and url("remove-vtpm", with_tpm.pk) not in shown
    assert looker.get(url("vtpm-download", with_tpm.pk, RSA, "certificate.der")).status_code == 200
    text = certificate_for(keys[0].public_key).decode()
    for name, args, values in (
        ("add-vtpm", [], {}), ("remove-vtpm", [], {"confirm": "app-01"}), ("vtpm-read", [], {}),
        ("vtpm-replace", [RSA], {"certificate": text}),
    ):  # fmt: skip
        assert looker.post(url(name, with_tpm.pk, *args), values).status_code == 403
        assert reverse("login") in Client().get(url(name, with_tpm.pk, *args)).headers["Location"]
    assert api.post(path).code == api.post(f"{path}/remove", {"confirm": "app-01"}).code == "not_permitted"
    assert api.post(f"{path}/certificates/read").code == "not_permitted"
    assert api("PUT", f"{path}/certificates/{RSA}", {"certificate_pem": text}).code == "not_permitted"
    assert not Job.objects.exists()


def test_no_such_vm(admin: Client, alice: User) -> None:
    for name, args in (("vm-vtpm", []), ("add-vtpm", []), ("vtpm-read", []), ("vtpm-download", [RSA, "key.pem"])):
        assert admin.get(url(name, uuid4(), *args)).status_code == 404
    assert caller(alice).get(f"/virtual-machines/{uuid4()}/vtpm").status == 404
