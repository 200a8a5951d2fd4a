"""VM Options through its URL: who may, what is refused and how it is said, and that looking changes nothing."""

import html
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from encryption.models import Key, KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Disk, Event, Host, Job, PowerState, VirtualMachine

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]
HTMX = {"HX-Request": "true"}


@pytest.fixture
def local(host: Host) -> Host:
    """Its files are reached by workers."""
    host.uri = "qemu:///system"
    host.save()
    return host


@pytest.fixture
def vm(local: Host) -> VirtualMachine:
    made = VirtualMachine.objects.create(
        host=local, uuid=uuid4(), name="app-01", power_state=PowerState.OFF, firmware="uefi", nvram_path="/n/VARS.fd"
    )
    for target in ("vda", "vdb"):
        Disk.objects.create(
            virtual_machine=made, target=target, format="raw", source=f"/i/{target}.raw", capacity_bytes=2**30
        )
    return made


@pytest.fixture
def provider(db: None) -> KmsCluster:
    return KmsCluster.objects.create(name="Main KMS", is_default=True)


def address(vm: VirtualMachine) -> str:
    return reverse("encryption:vm-options", args=[vm.pk])


def wanted(*disks: str, encrypt: bool = True, **more: str) -> dict[str, object]:
    """The form as a browser sends it: the home's policy, and one for each disk."""
    yes, no = (str(StoragePolicy.objects.get(is_builtin=True, encrypts=one).pk) for one in (True, False))
    targets = Disk.objects.filter(is_read_only=False).values_list("target", flat=True)
    chosen = {f"disk-{target}": yes if target in disks else no for target in targets}
    return {"policy": yes if encrypt else no, **chosen, **more}


def test_applied(admin: Client, vm: VirtualMachine, provider: KmsCluster, sent: list[object]) -> None:
    answer = admin.post(address(vm), wanted("vda", kms_cluster=str(provider.pk)))
    assert answer.status_code == 302
    assert answer.headers["Location"] == address(vm)
    job = Job.objects.get()
    assert (job.kind, job.target_id, job.actor) == ("encryption.apply_options", vm.pk, "alice")
    encrypts = StoragePolicy.objects.get(encrypts=True)
    assert job.params["disks"]["vda"] == str(encrypts.pk) and job.params["disks"].keys() == {"vda", "vdb"}
    assert job.params["kms_cluster"] == str(provider.pk)
    event = Event.objects.get()
    assert (event.kind, event.actor, event.job) == ("vm.options_requested", "alice", job)


def test_twice(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    admin.post(address(vm), wanted("vda"))
    answer = admin.post(address(vm), wanted("vda"))
    assert answer.status_code == 409 and "app-01 is busy: Change VM encryption" in answer.content.decode()
    assert "ait for it in Recent Tasks" in answer.content.decode()
    assert Job.objects.count() == 1 and Event.objects.count() == 1


def test_nothing_to_do(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    answer = admin.post(address(vm), wanted(encrypt=False))
    assert answer.status_code == 409 and "is as wanted already" in answer.content.decode()
    assert not Job.objects.exists()


def test_preview_shows_the_plan_and_changes_nothing(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    for answer in (
        admin.post(address(vm), wanted("vdb", preview="1")),
        admin.post(reverse("encryption:vm-plan", args=[vm.pk]), wanted("vdb"), headers=HTMX),
    ):
        page = answer.content.decode()
        assert answer.status_code == 200
        assert "Encrypt vdb (raw) into a LUKS image" in page and "Encrypt the NVRAM" in page
        assert "Encrypt vda" not in page
    assert not Job.objects.exists() and not Event.objects.exists() and not VmSecurity.objects.exists()


def test_somebody_who_may_only_look(looker: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    page = looker.get(address(vm)).content.decode()
    assert "You may look at the options" in page and ">Apply<" not in page
    assert "Encrypt vda" in looker.post(address(vm), wanted("vda", preview="1")).content.decode()
    assert looker.post(reverse("encryption:vm-plan", args=[vm.pk]), wanted("vda")).status_code == 200
    for wish in (wanted("vda"), wanted(encrypt=False)):
        answer = looker.post(address(vm), wish)
        assert answer.status_code == 403 and "charlie may not" in answer.content.decode()
    assert not Job.objects.exists() and {row.kind for row in Event.objects.all()} == {"access.denied"}


def test_nobody(client: Client, vm: VirtualMachine) -> None:
    for name in ("vm-options", "vm-card"):
        answer = client.get(reverse(f"encryption:{name}", args=[vm.pk]))
        assert answer.status_code == 302 and reverse("login") in answer.headers["Location"]
    for name in ("vm-options", "vm-plan"):
        assert client.post(reverse(f"encryption:{name}", args=[vm.pk]), {}).status_code == 302
    assert not Job.objects.exists()


def test_wrong_method(admin: Client, vm: VirtualMachine) -> None:
    assert admin.put(address(vm)).status_code == 405
    assert admin.delete(address(vm)).status_code == 405
    assert admin.get(reverse("encryption:vm-plan", args=[vm.pk])).status_code == 405
    assert admin.post(reverse("encryption:vm-card", args=[vm.pk])).status_code == 405


def test_vm_that_is_gone(admin: Client) -> None:
    for name in ("vm-options", "vm-card"):
        assert admin.get(reverse(f"encryption:{name}", args=[uuid4()])).status_code == 404


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"policy": str(uuid4())}, "not one of the available choices"),
        ({"policy": "nonsense"}, "not one of the available choices"),
        ({"policy": ""}, "This field is required"),
        ({"disk-vda": str(uuid4())}, "not one of the available choices"),
        ({"disk-vda": ""}, "This field is required"),
        ({"kms_cluster": str(uuid4())}, "not one of the available choices"),
    ],
)
def test_bad_input_is_shown_and_what_was_chosen_stays(
    admin: Client, vm: VirtualMachine, provider: KmsCluster, change: dict[str, object], told: str
) -> None:
    answer = admin.post(address(vm), wanted("vda") | change)
    page = answer.content.decode()
    assert answer.status_code == 422 and told in page
    assert f'<option value="{wanted("vda")["disk-vdb"]}" selected>' in page
    assert not Job.objects.exists()
    plan = admin.post(reverse("encryption:vm-plan", args=[vm.pk]), wanted("vda") | change, headers=HTMX)
    assert plan.status_code == 200 and "Encrypt vda" not in plan.content.decode()


@pytest.mark.parametrize(
    ("change", "wish", "told", "hint"),
    [
        ({"power_state": "on"}, ("vda",), "its home files (NVRAM) are open", "shut it down"),
        ({"is_present": False}, ("vda",), "no longer on its host", "refresh the host"),
        ({"is_persistent": False}, ("vda",), "no persistent definition", "define it on its host"),
        ({"is_nvram_encrypted": True}, ("vda",), "encrypted outside this console", "import its keys"),
        ({"has_managed_save": True}, ("vda",), "guest memory lies in that in clear", "discard the saved state"),
        (
            {"snapshot_count": 2, "memory_snapshot_count": 1},
            ("vda",),
            "2 snapshots, 1 of them with guest memory",
            "delete the snapshots on its host",
        ),
    ],
)
def test_refusals_of_the_plan_are_shown_with_what_to_do(
    admin: Client,
    vm: VirtualMachine,
    provider: KmsCluster,
    change: dict[str, object],
    wish: tuple[str, ...],
    told: str,
    hint: str,
) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(**change)
    for answer, status in (
        (admin.post(address(vm), wanted(*wish, preview="1")), 200),
        (admin.post(address(vm), wanted(*wish)), 409),
    ):
        page = answer.content.decode()
        assert answer.status_code == status and told in page and hint.lower() in page.lower()
    assert not Job.objects.exists()


def test_disk_without_a_home_and_no_key_provider(admin: Client, vm: VirtualMachine) -> None:
    answer = admin.post(address(vm), wanted("vda", encrypt=False))
    assert answer.status_code == 409 and "while the VM itself is not" in answer.content.decode()
    answer = admin.post(address(vm), wanted("vda"))
    assert answer.status_code == 409 and "no key provider" in answer.content.decode()


def test_files_that_no_worker_reaches(admin: Client, vm: VirtualMachine, local: Host, provider: KmsCluster) -> None:
    Host.objects.filter(pk=local.pk).update(uri="qemu+tls://far/system")
    answer = admin.post(address(vm), wanted("vda", preview="1"))
    page = html.unescape(answer.content.decode())
    assert answer.status_code == 200 and "while the VM is off, by its host" in page
    assert "No worker reaches the files of app-01: its host copies the disks itself" in page
    assert admin.post(address(vm), wanted("vda")).status_code == 302


def protect(vm: VirtualMachine, provider: KmsCluster, stage: Stage, target: str = "vda") -> None:
    """A secret at that stage; one that is being replaced with its successor."""
    key, _ = Key.objects.get_or_create(cluster=provider, key_id="7")
    policy = StoragePolicy.objects.get(encrypts=True)
    VmSecurity.objects.get_or_create(virtual_machine=vm, defaults={"policy": policy, "key": key})
    made = WrappedSecret.objects.create(
        virtual_machine=vm, purpose=Purpose.DISK, target=target, key=key, wrapped=b"planted-wrapped-secret",
        path=f"/i/{target}.luks", plain_path=f"/i/{target}.raw", stage=stage,
    )  # fmt: skip
    if stage == Stage.REPLACED:
        WrappedSecret.objects.create(
            virtual_machine=vm, purpose=Purpose.DISK, target=target, key=key, wrapped=b"planted-wrapped-secret",
            path=f"/i/{target}-new.luks", plain_path=f"/i/{target}.raw", stage=Stage.ENCRYPTING, replaces=made,
        )  # fmt: skip


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in (Stage.IN_USE, Stage.DETACHED)])
def test_what_an_interrupted_change_left_can_always_be_applied_again(
    admin: Client, vm: VirtualMachine, provider: KmsCluster, stage: Stage
) -> None:
    """Its job was cancelled before another worker took it up: whatever the row says, there is something to do."""
    VirtualMachine.objects.filter(pk=vm.pk).update(firmware="bios", nvram_path="")
    protect(vm, provider, stage)
    for is_encrypted in (True, False):
        Disk.objects.filter(virtual_machine=vm, target="vda").update(is_encrypted=is_encrypted)
        for wish in (wanted("vda"), wanted(), wanted(encrypt=False)):
            answer = admin.post(address(vm), wish)
            assert answer.status_code == 302, (is_encrypted, wish, answer.content.decode()[-2000:])
            Job.objects.update(status="cancelled")


def test_queries_and_secrecy(admin: Client, vm: VirtualMachine, provider: KmsCluster) -> None:
    protect(vm, provider, Stage.IN_USE)
    addresses = [address(vm), reverse("encryption:vm-card", args=[vm.pk])]

    def counts() -> list[int]:
        found = []
        for url in addresses:
            with CaptureQueriesContext(connection) as queries:
                page = admin.get(url, headers=HTMX).content.decode()
            assert "planted" not in page
            found.append(len(queries))
        with CaptureQueriesContext(connection) as queries:
            admin.post(reverse("encryption:vm-plan", args=[vm.pk]), wanted("vda"), headers=HTMX)
        return [*found, len(queries)]

    few = counts()
    for number in range(12):
        target = f"sd{chr(97 + number)}"
        Disk.objects.create(virtual_machine=vm, target=target, format="raw", source=f"/i/{target}", is_encrypted=True)
        protect(vm, provider, Stage.IN_USE, target)
        KmsCluster.objects.create(name=f"KMS {number}")
    assert counts() == few
