"""Recrypt through its dialog and the API: the three ways, who may, what is refused and how it is said."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption.models import Key, KmsCluster, Purpose, Stage, StoragePolicy, VmSecurity, WrappedSecret
from inventory.models import Disk, Event, Host, Job, PowerState, VirtualMachine
from tests.api_client import Caller, caller

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def vm(host: Host) -> VirtualMachine:
    """Encrypted as a whole, powered off, on a host whose files workers reach."""
    host.uri = "qemu:///system"
    host.save()
    made = VirtualMachine.objects.create(
        host=host, uuid=uuid4(), name="app-01", power_state=PowerState.OFF, firmware="uefi", nvram_path="/n/VARS.luks",
        is_nvram_encrypted=True, tpm_model="tpm-crb", is_tpm_encrypted=True,
    )  # fmt: skip
    key = Key.objects.create(cluster=KmsCluster.objects.create(name="KMS"), key_id="7")
    VmSecurity.objects.create(virtual_machine=made, policy=StoragePolicy.objects.get(encrypts=True), key=key)
    for target in ("vda", "vdb"):
        Disk.objects.create(
            virtual_machine=made, target=target, format="raw", source=f"/i/{target}.luks", capacity_bytes=3 * 2**30,
            is_encrypted=True,
        )  # fmt: skip
        secret(made, key, Purpose.DISK, target, f"/i/{target}.luks")
    secret(made, key, Purpose.NVRAM, "", "/n/VARS.luks")
    secret(made, key, Purpose.VTPM, "", "/t/tpm2")
    return made


def secret(vm: VirtualMachine, key: Key, purpose: Purpose, target: str, path: str) -> WrappedSecret:
    return WrappedSecret.objects.create(
        virtual_machine=vm, purpose=purpose, target=target, key=key, wrapped=b"planted-wrapped-secret", path=path,
        stage=Stage.IN_USE,
    )  # fmt: skip


@pytest.fixture
def api(alice: User) -> Caller:
    return caller(alice)


def dialog(vm: VirtualMachine) -> str:
    return reverse("encryption:vm-recrypt", args=[vm.pk])


def plan_url(vm: VirtualMachine) -> str:
    return reverse("encryption:vm-recrypt-plan", args=[vm.pk])


def route(vm: VirtualMachine, rest: str = "") -> str:
    return f"/virtual-machines/{vm.pk}/recrypt{rest}"


WAYS = [
    pytest.param({"way": "key"}, "", "encryption.recrypt_vm", "key.recrypt_requested", id="key"),
    pytest.param(
        {"way": "passphrases"}, "/passphrases", "encryption.rotate_passphrases", "vm.passphrase_rotation_requested",
        id="passphrases",
    ),
    pytest.param(
        {"way": "volume_keys", "parts": ["vda", "vdb", "nvram", "vtpm"]}, "/deep", "encryption.deep_recrypt_vm",
        "vm.deep_recrypt_requested", id="volume keys",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "rest", "kind", "event"), WAYS)
def test_each_way_starts_its_job_once(
    admin: Client, api: Caller, vm: VirtualMachine, data: dict[str, object], rest: str, kind: str, event: str
) -> None:
    answer = admin.post(dialog(vm), data)
    assert answer.status_code == 302, answer.content.decode()[-2000:]
    assert answer.headers["Location"] == reverse("inventory:monitor", args=["vm", vm.pk])
    first = Job.objects.get()
    assert (first.kind, first.target_id, first.actor) == (kind, vm.pk, "alice")
    assert Event.objects.get(job=first).kind == event
    again = admin.post(dialog(vm), data)
    assert again.status_code == 409 and "app-01 is busy" in again.content.decode()
    assert api.post(route(vm, rest), {} if rest == "/deep" else None).code == "target_busy"
    first.delete()
    made = api.post(route(vm, rest), {} if rest == "/deep" else None)
    assert made.status == 202
    second = Job.objects.get()
    assert (second.kind, second.params) == (first.kind, first.params)


def test_the_dialog_offers_all_parts_and_shows_what_is_done(admin: Client, vm: VirtualMachine) -> None:
    page = admin.get(dialog(vm)).content.decode()
    for words in (
        "New key encryption key",
        "New passphrases",
        "New volume keys",
        "vda (3.0 GiB)",
        "NVRAM",
        "vTPM state",
    ):
        assert words in page
    assert page.count("checked") == 5, "the first way, and every part"
    assert "Wrap its data keys under the new key" in page and "holds its home open" not in page
    assert "planted" not in page


def test_the_plan_of_each_way_changes_nothing(admin: Client, looker: Client, api: Caller, vm: VirtualMachine) -> None:
    told = {
        "key": ("Create and activate a 256-bit AES key", "Copy"),
        "passphrases": ("Destroy the keyslot of the old passphrase of vdb", "Create and activate"),
        "volume_keys": ("Copy vdb into a LUKS image with a new volume key while the VM is off", "Copy vda"),
    }
    for way, (there, absent) in told.items():
        for who in (admin, looker):
            page = who.post(plan_url(vm), {"way": way, "parts": ["vdb"]}).content.decode()
            assert there in page and absent not in page
        plan = api.post(route(vm, "/plan"), {"way": way, "parts": ["vdb"]}).body
        assert there in str(plan["steps"]) and absent not in str(plan["steps"]) and plan["refusals"] == []
    deep = api.post(route(vm, "/plan"), {"way": "volume_keys", "parts": ["vdb"]}).body
    assert deep["new_bytes"] == 3 * 2**30
    assert {one["code"] for one in deep["warnings"]} == {"space_needed", "parts_left_out", "overwrite_limits"}
    assert "<table" not in admin.post(plan_url(vm), {"way": "nonsense"}).content.decode()
    assert not Job.objects.exists() and not Event.objects.exclude(kind__startswith="api_token").exists()


def test_a_running_vm(admin: Client, api: Caller, vm: VirtualMachine) -> None:
    """Its disks are suggested, its home is not; what needs it off is refused with the way."""
    VirtualMachine.objects.filter(pk=vm.pk).update(power_state=PowerState.ON)
    page = admin.get(dialog(vm)).content.decode()
    assert page.count("checked") == 3 and "holds its home open" in page and "NVRAM, only while the VM is off" in page
    answer = admin.post(dialog(vm), {"way": "volume_keys", "parts": ["vda", "vtpm"]})
    assert answer.status_code == 409 and "Choose its disks alone" in answer.content.decode()
    assert api.post(route(vm, "/deep"), {}).code == "home_in_use"
    answer = admin.post(dialog(vm), {"way": "passphrases"})
    assert answer.status_code == 409 and "mark the VM as tainted" in answer.content.decode()
    assert api.post(route(vm, "/passphrases")).code == "vm_running"
    assert not Job.objects.exists()
    assert admin.post(dialog(vm), {"way": "volume_keys", "parts": ["vda", "vdb"]}).status_code == 302
    assert Job.objects.get().params["parts"] == ["vda", "vdb"]


def gone(vm: VirtualMachine) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(is_present=False)


def transient(vm: VirtualMachine) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(is_persistent=False)


def plain(vm: VirtualMachine) -> None:
    WrappedSecret.objects.all().delete()
    VmSecurity.objects.all().delete()


def foreign_disk(vm: VirtualMachine) -> None:
    WrappedSecret.objects.filter(target="vda").delete()


def foreign_home(vm: VirtualMachine) -> None:
    WrappedSecret.objects.filter(purpose=Purpose.NVRAM).delete()


def far(vm: VirtualMachine) -> None:
    Host.objects.update(uri="qemu+tls://far/system")


def shared(vm: VirtualMachine) -> None:
    other = VirtualMachine.objects.create(host=vm.host, uuid=uuid4(), name="app-02", power_state=PowerState.OFF)
    Disk.objects.create(virtual_machine=other, target="vda", format="raw", source="/i/vda.luks")


def device(vm: VirtualMachine) -> None:
    Disk.objects.filter(target="vda").update(source="/dev/mapper/vda")


def snapshot(vm: VirtualMachine) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(snapshot_count=1)


def saved(vm: VirtualMachine) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(has_managed_save=True)


def unfinished(vm: VirtualMachine) -> None:
    WrappedSecret.objects.filter(target="vda").update(stage=Stage.SWITCHED)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (gone, "vm_gone"),
        (transient, "vm_transient"),
        (plain, "not_encrypted"),
        (foreign_disk, "foreign_disk"),
        (foreign_home, "foreign_home"),
        (shared, "disk_shared"),
        (device, "disk_is_device"),
        (snapshot, "snapshots_present"),
        (saved, "managed_save_present"),
        (unfinished, "change_unfinished"),
    ],
)
def test_refused(admin: Client, api: Caller, vm: VirtualMachine, spoil: object, code: str) -> None:
    spoil(vm)  # type: ignore[operator]
    told = api.post(route(vm, "/deep"), {"parts": ["vda", "nvram"]})
    assert (told.status, told.code) == (409, code)
    assert api.post(route(vm, "/passphrases")).code == code
    for data in ({"way": "volume_keys", "parts": ["vda", "nvram"]}, {"way": "passphrases"}):
        answer = admin.post(dialog(vm), data)
        assert answer.status_code == 409 and told.body["hint"].lower() in answer.content.decode().lower()
    assert not Job.objects.exists()


def test_the_plans_say_so_where_no_worker_reaches_the_files(admin: Client, api: Caller, vm: VirtualMachine) -> None:
    far(vm)
    for way, code in (("passphrases", "host_writes"), ("volume_keys", "host_copies")):
        plan = api.post(route(vm, "/plan"), {"way": way, "parts": ["vda"]}).body
        assert plan["refusals"] == [] and code in {one["code"] for one in plan["warnings"]}
    page = admin.post(plan_url(vm), {"way": "passphrases"}).content.decode()
    assert "written through its host" in page
    assert api.post(route(vm, "/passphrases")).status == 202


def test_parts_that_cannot_be(admin: Client, api: Caller, vm: VirtualMachine) -> None:
    answer = admin.post(dialog(vm), {"way": "volume_keys", "parts": ["vdz"]})
    assert answer.status_code == 422 and "not one of the available choices" in answer.content.decode()
    assert api.post(route(vm, "/deep"), {"parts": ["vdz"]}).code == "part_unknown"
    answer = admin.post(dialog(vm), {"way": "volume_keys"})
    assert answer.status_code == 409 and "No encrypted part of app-01 was chosen" in answer.content.decode()
    assert api.post(route(vm, "/deep"), {"parts": []}).code == "nothing_to_recrypt"
    assert admin.post(dialog(vm), {"way": "all"}).status_code == 422
    assert admin.post(dialog(vm), {}).status_code == 422
    assert api.post(route(vm, "/plan"), {"way": "all"}).status == 422
    assert api.post(route(vm, "/deep"), {"key_provider_id": str(uuid4())}).code == "key_provider_not_found"
    Disk.objects.update(is_encrypted=False)
    VirtualMachine.objects.update(is_nvram_encrypted=False)
    assert api.post(route(vm, "/passphrases")).code == "nothing_to_recrypt"
    assert not Job.objects.exists()


def test_somebody_who_may_only_look_and_nobody(
    looker: Client, client: Client, charlie: User, vm: VirtualMachine
) -> None:
    for data in ({"way": "key"}, {"way": "passphrases"}, {"way": "volume_keys", "parts": ["vda"]}):
        assert looker.post(dialog(vm), data).status_code == 403
        assert client.post(dialog(vm), data).status_code == 302
    assert looker.get(dialog(vm)).status_code == 403
    for rest, body in (("", None), ("/passphrases", None), ("/deep", {})):
        assert caller(charlie).post(route(vm, rest), body).status == 403
    assert not Job.objects.exists()


def test_wrong_method_and_a_vm_that_is_not_there(admin: Client, api: Caller, vm: VirtualMachine) -> None:
    assert admin.get(plan_url(vm)).status_code == 405
    assert admin.put(dialog(vm)).status_code == 405
    missing = VirtualMachine(pk=uuid4())
    assert admin.get(dialog(missing)).status_code == 404
    assert admin.post(plan_url(missing), {"way": "key"}).status_code == 404
    for rest, body in (("/plan", {"way": "key"}), ("/passphrases", None), ("/deep", {})):
        assert api.post(route(missing, rest), body).code == "vm_not_found"


def test_a_part_that_is_getting_a_new_key_is_shown_once(admin: Client, vm: VirtualMachine) -> None:
    old = WrappedSecret.objects.get(target="vda")
    WrappedSecret.objects.filter(pk=old.pk).update(stage=Stage.REPLACED)
    new = secret_replacing(old)
    page = admin.get(reverse("encryption:vm-options", args=[vm.pk])).content.decode()
    assert page.count("<dt>vda</dt>") == 1 and "Getting a new key" in page
    WrappedSecret.objects.filter(pk=new.pk).update(stage=Stage.SWITCHED)
    page = admin.get(reverse("encryption:vm-options", args=[vm.pk])).content.decode()
    assert page.count("<dt>vda</dt>") == 1 and "Encrypted, original left" in page


def secret_replacing(old: WrappedSecret) -> WrappedSecret:
    return WrappedSecret.objects.create(
        virtual_machine=old.virtual_machine, purpose=old.purpose, target=old.target, key=old.key,
        wrapped=b"planted-wrapped-secret", path="/i/vda-new.luks", stage=Stage.ENCRYPTING, replaces=old,
    )  # fmt: skip
