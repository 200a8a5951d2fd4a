"""VM Options beyond encryption: vTPM, Secure Boot, VBS, Encrypted vMotion, and the plan that was approved."""

import html
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import Key, KmsCluster, StoragePolicy, VmSecurity
from inventory.engine.abilities import HostAbilities
from inventory.models import Disk, Event, Host, Job, JobStatus, PowerState, VirtualMachine

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    can = HostAbilities(
        virtualization="kvm", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True, nested="vmx",
        secure_loader="/f/OVMF_CODE_4M.ms.fd", plain_loader="/f/OVMF_CODE_4M.fd",
    )  # fmt: skip
    Host.objects.filter(pk=host.pk).update(uri="qemu:///system", abilities=can.as_row())
    made = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF, firmware="uefi", nvram_path="/n/VARS.fd",
        definition_sha256="aa",
    )  # fmt: skip
    Disk.objects.create(
        virtual_machine=made,
        target="vda",
        format="raw",
        source="/i/vda.raw",
        capacity_bytes=2**30,
        allocation_bytes=2**20,
    )
    return made


@pytest.fixture
def provider(db: None) -> KmsCluster:
    return KmsCluster.objects.create(name="Main KMS", is_default=True)


@pytest.fixture
def admin(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def plain() -> str:
    return str(StoragePolicy.objects.get(is_builtin=True, encrypts=False).pk)


def form(**more: str) -> dict[str, str]:
    return {"policy": plain(), "disk-vda": plain(), **more}


def address(vm: VirtualMachine, name: str = "vm-options") -> str:
    return reverse(f"encryption:{name}", args=[vm.pk])


def told(answer: object) -> str:
    return html.unescape(answer.content.decode())  # type: ignore[attr-defined]


def test_a_vtpm_is_asked_for(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    page = told(admin.post(address(vm, "vm-plan"), form(vtpm="add")))
    assert "Add a TPM 2.0" in page and "The home of app-01 is encrypted because of the vTPM" in page
    assert "Encrypt vda" not in page and "a data key each for NVRAM, vTPM state" in page
    assert admin.post(address(vm), form(vtpm="add")).status_code == 302
    job = Job.objects.get()
    assert job.params["vtpm"] is True and [one["kind"] for one in job.params["plan"]["steps"]][3] == "add_vtpm"
    assert Event.objects.get().data["plan_digest"] == job.params["plan"]["digest"]


@pytest.mark.parametrize(
    ("change", "sent_form", "control", "reason", "remedy"),
    [
        ({"power_state": "on"}, {"vtpm": "add"}, "vtpm", "a vTPM cannot be added meanwhile", "Shut it down first"),
        ({"firmware": "bios", "nvram_path": ""}, {"vtpm": "add"}, "vtpm", "a TPM 2.0 needs UEFI", "MBR2GPT"),
        ({"power_state": "on"}, {"vbs": "on"}, "vbs", "is running, and VBS is hardware", "Shut it down first"),
        ({"firmware": "bios", "nvram_path": ""}, {"vbs": "on"}, "vbs", "BIOS firmware and disks with data", "mbr2gpt"),
        ({"power_state": "on"}, {"secure_boot": "on"}, "secure_boot", "Secure Boot is hardware", "Shut it down first"),
        ({"has_managed_save": True}, {"secure_boot": "on"}, "secure_boot", "has a saved state", "discard the saved"),
    ],
)  # fmt: skip
def test_a_control_that_cannot_be_used_says_why_and_what_would_help(
    admin: Client,
    vm: VirtualMachine,
    provider: KmsCluster,
    change: dict[str, object],
    sent_form: dict[str, str],
    control: str,
    reason: str,
    remedy: str,
) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(**change)
    page = told(admin.get(address(vm)))
    select = page.split(f'id="id_{control}"')[0].rsplit("<select", 1)[1] + page.split(f'id="id_{control}"')[1][:200]
    assert "disabled" in select and f"id_{control}_reasons" in select
    reasons = page.split(f'id="id_{control}_reasons"')[1].split("</ul>")[0]
    assert reason in reasons and remedy in reasons
    for answer in (
        admin.post(address(vm), form(**sent_form)),
        admin.post(
            f"/api/v1/virtual-machines/{vm.pk}/options",
            {"policy_id": plain()} | {name: value in ("on", "add") for name, value in sent_form.items()},
            content_type="application/json",
        ),
    ):
        assert answer.status_code == 409 and reason in told(answer)
    assert not Job.objects.exists()


def test_without_a_key_provider_there_is_no_vtpm(admin: Client, vm: VirtualMachine) -> None:
    assert "no key provider to take a key from" in told(admin.get(address(vm))).split("id_vtpm_reasons")[2]
    answer = admin.post(address(vm), form(vtpm="add"))
    assert answer.status_code == 409 and "no key provider" in told(answer)


def test_a_vtpm_is_removed_only_by_name(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(tpm_model="tpm-crb", tpm_version="2.0")
    page = told(admin.post(address(vm, "vm-plan"), form(vtpm="remove")))
    assert "BitLocker asks for the recovery key" in page and 'name="confirm"' in page
    for confirm in ("", "app-02", "APP-01"):
        answer = admin.post(address(vm), form(vtpm="remove", confirm=confirm))
        assert answer.status_code == 422 and "ype the VM's name as it is shown" in told(answer)
    assert not Job.objects.exists()
    assert admin.post(address(vm), form(vtpm="remove", confirm="app-01")).status_code == 302
    assert Job.objects.get().params["vtpm"] is False


def test_a_home_for_a_vtpm_that_is_not_there(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    """No page offers it; by the API it can be asked for, where its ID is known."""
    policy = str(StoragePolicy.every.get(is_for_vtpm=True).pk)
    assert admin.post(address(vm), form(policy=policy)).status_code == 422
    path, of_json = f"/api/v1/virtual-machines/{vm.pk}/options", "application/json"
    answer = admin.post(path, {"policy_id": policy}, content_type=of_json)
    assert answer.status_code == 409 and "vtpm_home_without_vtpm" in told(answer)
    answer = admin.post(path, {"policy_id": policy, "disks": {"vda": policy}}, content_type=of_json)
    assert answer.status_code == 422 and "policy_not_found" in told(answer)
    assert policy not in told(admin.get("/api/v1/storage-policies")) and not Job.objects.exists()


def test_what_is_left_alone_is_no_wish(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    unchanged = form(vtpm="keep", secure_boot="off", vbs="off", encrypted_vmotion="opportunistic")
    answer = admin.post(address(vm), unchanged)
    assert answer.status_code == 409 and "as wanted already" in told(answer)


def test_encrypted_vmotion_is_fixed_for_an_encrypted_vm(
    admin: Client, vm: VirtualMachine, provider: KmsCluster
) -> None:
    assert admin.post(address(vm), form(encrypted_vmotion="disabled")).status_code == 302
    assert Job.objects.get().params["encrypted_vmotion"] == "disabled"
    Job.objects.update(status=JobStatus.CANCELLED)
    encrypting = str(StoragePolicy.objects.get(encrypts=True).pk)
    answer = admin.post(address(vm), form(policy=encrypting, encrypted_vmotion="disabled"))
    assert answer.status_code == 409 and "always migrates encrypted" in told(answer)
    key = Key.objects.create(cluster=provider, key_id="7")
    VmSecurity.objects.create(virtual_machine=vm, policy=StoragePolicy.objects.get(encrypts=True), key=key)
    page = told(admin.get(address(vm)))
    assert "decrypt the vm first" in page.lower().split('id="id_encrypted_vmotion_reasons"')[1][:600]


class TestApproval:
    def digest(self, admin: Client, vm: VirtualMachine, **more: str) -> str:
        page = told(admin.post(address(vm, "vm-plan"), form(**more)))
        return page.split('name="plan_digest" value="')[1].split('"')[0]

    def test_the_plan_that_was_seen(self, admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
        seen = self.digest(admin, vm, vtpm="add")
        assert admin.post(address(vm), form(vtpm="add", plan_digest=seen)).status_code == 302
        assert Job.objects.get().params["plan"]["digest"] == seen

    @pytest.mark.parametrize("change", [{"definition_sha256": "bb"}, {"has_secure_boot": True, "firmware": "uefi"}])
    def test_another_plan_by_now(
        self, admin: Client, vm: VirtualMachine, provider: KmsCluster, change: dict[str, object]
    ) -> None:
        seen = self.digest(admin, vm, secure_boot="on", encrypted_vmotion="required")
        VirtualMachine.objects.filter(pk=vm.pk).update(**change)
        sent_form = form(secure_boot="on", encrypted_vmotion="required", plan_digest=seen)
        answer = admin.post(address(vm), sent_form)
        assert answer.status_code == 409 and "is not as it was when the plan was made" in told(answer)
        assert "look at the new plan" in told(answer)
        path = f"/api/v1/virtual-machines/{vm.pk}/options"
        wanted = {"policy_id": plain(), "encrypted_vmotion": "required", "plan_digest": seen}
        answer = admin.post(path, wanted, content_type="application/json")
        assert answer.status_code == 409 and "plan_outdated" in told(answer)
        assert not Job.objects.exists()

    def test_over_the_api(self, admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
        path = f"/api/v1/virtual-machines/{vm.pk}/options"
        wanted: dict[str, object] = {"policy_id": plain(), "vtpm": True}
        plan = admin.post(f"{path}/plan", wanted, content_type="application/json").json()
        assert plan["effects"][0]["label"] == "Downtime" and len(plan["digest"]) == 64
        assert any(step["undo"] for step in plan["steps"])
        answer = admin.post(path, wanted | {"plan_digest": plan["digest"]}, content_type="application/json")
        assert answer.status_code == 202


class TestProgress:
    def test_the_steps_while_the_job_is_at_work(self, admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
        assert admin.get(address(vm, "vm-progress")).status_code == 286
        admin.post(address(vm), form(vtpm="add"))
        Job.objects.update(status=JobStatus.RUNNING, step="encrypting NVRAM")
        answer = admin.get(address(vm, "vm-progress"))
        assert answer.status_code == 200 and 'aria-current="step"' in told(answer)
        assert told(answer).count("Done") == 2 and "Under way" in told(answer)
        assert "Plan being applied" in told(admin.get(address(vm)))
        Job.objects.update(status=JobStatus.FAILED, message="app-01: no space")
        answer = admin.get(address(vm, "vm-progress"))
        assert answer.status_code == 286 and "Stopped here" in told(answer) and "no space" in told(answer).lower()

    def test_somebody_unknown(self, client: Client, vm: VirtualMachine) -> None:
        assert client.get(address(vm, "vm-progress")).status_code == 302
