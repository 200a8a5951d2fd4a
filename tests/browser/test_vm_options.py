"""VM Options without a mouse: reasons beside controls, the plan, and its steps while it is applied."""

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from encryption.models import KmsCluster
from inventory.engine.abilities import HostAbilities
from inventory.models import Host, Job, JobStatus, PowerState, VirtualMachine, VmDefinition
from tests.browser.conftest import Console
from tests.sample import Sample

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
CAN = HostAbilities(
    virtualization="kvm", q35=True, uefi=True, secure_boot=True, smm=True, vtpm=True, viommu=True, nested="vmx",
    secure_loader="/f/OVMF_CODE_4M.ms.fd", plain_loader="/f/OVMF_CODE_4M.fd",
)  # fmt: skip


@pytest.fixture
def vm(inventory: Sample) -> VirtualMachine:
    """Powered off, with UEFI and no TPM yet, on a host that can do all of it."""
    KmsCluster.objects.create(name="Main KMS", is_default=True)
    Host.objects.filter(pk=inventory.off_vm.host_id).update(uri="qemu:///system", abilities=CAN.as_row())
    VirtualMachine.objects.filter(pk=inventory.off_vm.pk).update(
        firmware="uefi", nvram_path="/n/VARS.fd", power_state=PowerState.OFF, tpm_model="", tpm_version="",
        is_tpm_encrypted=False,
    )  # fmt: skip
    inventory.off_vm.refresh_from_db()
    define(inventory.off_vm)
    return inventory.off_vm


def define(vm: VirtualMachine) -> None:
    """Its definition, as a host would have reported it."""
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{disk.format}'/><source file='{disk.source}'/>"
        f"<target dev='{disk.target}' bus='virtio'/></disk>"
        for disk in vm.disks.all()
    )
    xml = (
        f"<domain type='kvm'><name>{vm.name}</name><uuid>{vm.uuid}</uuid><memory unit='KiB'>9437184</memory>"
        "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>"
        f"/f/OVMF_CODE_4M.fd</loader><nvram>{vm.nvram_path}</nvram></os><devices>{disks}</devices></domain>"
    )
    VmDefinition.objects.create(virtual_machine=vm, sha256="aa", xml=xml)
    VirtualMachine.objects.filter(pk=vm.pk).update(definition_sha256="aa")


def tab_to(page: Page, selector: str) -> None:
    """By Tab alone, as somebody without a mouse comes there."""
    for _ in range(60):
        if page.evaluate("s => document.activeElement?.matches(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached by Tab")


def test_a_vtpm_is_planned_and_applied_by_keyboard(console: Console, vm: VirtualMachine) -> None:
    page = console.open(reverse("encryption:vm-options", args=[vm.pk]))
    page.focus("#id_policy")
    tab_to(page, "#id_vtpm")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(page.locator("#plan")).to_contain_text("Add a TPM 2.0")
    expect(page.locator("#plan")).to_contain_text("encrypted because of the vTPM")
    expect(page.locator("#plan dl.facts")).to_contain_text("Keys to be made")
    tab_to(page, "#plan details.definition summary")
    page.keyboard.press("Enter")
    tab_to(page, "#plan .diff")  # scrolled by keyboard
    expect(page.locator("#plan .diff .added").first).to_be_visible()
    assert "{new secret of vTPM state}" in page.locator("#plan .diff").inner_text()
    console.shot("vm-options-vtpm-plan")
    assert console.axe() == []
    tab_to(page, "button.btn-primary")
    page.keyboard.press("Enter")
    expect(page.locator("#plan-progress")).to_contain_text("Plan being applied")
    Job.objects.filter(target_id=vm.pk, kind="encryption.apply_options").update(
        status=JobStatus.RUNNING, step="encrypting NVRAM"
    )
    expect(page.locator("#plan-progress [aria-current=step]")).to_contain_text("Encrypt the NVRAM")
    console.shot("vm-options-progress")
    assert console.axe() == []
    VirtualMachine.objects.filter(pk=vm.pk).update(tpm_model="tpm-crb", tpm_version="2.0", is_tpm_encrypted=True)
    Job.objects.filter(target_id=vm.pk, kind="encryption.apply_options").update(status=JobStatus.SUCCEEDED, step="")
    expect(page.locator("#plan-progress")).to_contain_text("Plan applied")
    expect(page.locator("#id_vtpm")).to_contain_text("TPM 2.0")  # the form, too, shows what is so by now
    expect(page.locator("#id_vtpm")).to_contain_text("None: remove it")


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 1440), ("light", 420)])
def test_reasons_are_read_with_their_controls(
    console: Console, vm: VirtualMachine, inventory: Sample, theme: str, width: int
) -> None:
    VirtualMachine.objects.filter(pk=vm.pk).update(power_state=PowerState.ON)
    page = console.page
    page.set_viewport_size({"width": width, "height": 900})
    page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    console.open(reverse("encryption:vm-options", args=[vm.pk]))
    for control in ("vtpm", "secure_boot", "vbs"):
        select = page.locator(f"#id_{control}")
        expect(select).to_be_disabled()
        described = (select.get_attribute("aria-describedby") or "").split()
        told = " ".join(page.inner_text(f"#{one}") for one in described)
        assert "is running" in told and "hut it down first" in told
    assert console.axe() == []
    page.locator("#id_encrypted_vmotion").scroll_into_view_if_needed()
    console.shot(f"vm-options-reasons-{theme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_many_are_chosen_in_the_list_by_keyboard(console: Console, vm: VirtualMachine, inventory: Sample) -> None:
    page = console.open(reverse("inventory:vms", args=["host", vm.host_id]))
    page.locator(f"#pick-{vm.pk}").focus()
    page.keyboard.press("Space")
    console.shot("vm-list-chosen")
    assert console.axe() == []
    tab_to(page, "#chosen-vms button")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('VM Options of 1 virtual machine')")
    page.select_option("#id_vtpm", "add")
    page.click("text=Show plans")
    page.wait_for_selector("text=Apply")
    console.shot("vm-options-many")
    assert console.axe() == []


def test_a_new_vm_by_keyboard(console: Console, vm: VirtualMachine, inventory: Sample) -> None:
    """The same form as in VM Options, its plan beneath, and the job."""
    page = console.open(f"{reverse('encryption:new-vm')}?cluster={inventory.cluster.pk}")
    page.focus("#id_name")
    page.keyboard.type("win-01")
    tab_to(page, "#id_guest")
    page.keyboard.press("ArrowDown")
    tab_to(page, "#id_vtpm")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(page.locator("#plan")).to_contain_text("Define win-01")
    expect(page.locator("#plan")).to_contain_text("Add a TPM 2.0")
    tab_to(page, "#plan details.definition summary")
    page.keyboard.press("Enter")
    tab_to(page, "#plan .diff")
    expect(page.locator("#plan .diff")).to_contain_text("{new secret of vtpm}")
    assert console.axe() == []
    page.keyboard.press("Enter")
    tab_to(page, "button.btn-primary")
    page.keyboard.press("Enter")
    page.wait_for_url("**/monitor/**")
    assert Job.objects.get(kind="encryption.create_vm").params["vtpm"] is True


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 1440), ("light", 420)])
def test_a_new_vm_is_seen(console: Console, vm: VirtualMachine, theme: str, width: int) -> None:
    page = console.page
    page.set_viewport_size({"width": width, "height": 1800})
    page.context.add_cookies([{"name": "bartizan_theme", "value": theme, "url": console.url}])
    console.open(reverse("encryption:new-vm"))
    page.fill("#id_name", "web-01")
    page.select_option("#id_policy", label="VM Encryption Policy")
    page.select_option("#id_disk-1", label="VM Encryption Policy")
    expect(page.locator("#plan")).to_contain_text("Make vda, 20.0 GiB: a LUKS image")
    page.click("#plan details.definition summary")
    assert console.axe() == []
    console.shot(f"new-vm-{theme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_bios_switches_off_what_needs_uefi(console: Console, vm: VirtualMachine) -> None:
    page = console.page
    page.set_viewport_size({"width": 420, "height": 1800})
    page.context.add_cookies([{"name": "bartizan_theme", "value": "dark", "url": console.url}])
    console.open(reverse("encryption:new-vm"))
    page.select_option("#id_vtpm", "add")
    page.select_option("#id_vbs", "on")
    page.focus("#id_firmware")
    page.keyboard.press("ArrowDown")
    for control in ("vtpm", "secure_boot", "vbs"):
        select = page.locator(f"#id_{control}")
        expect(select).to_be_disabled()
        expect(select).to_have_value("keep" if control == "vtpm" else "off")
        described = (select.get_attribute("aria-describedby") or "").split()
        assert "BIOS firmware was chosen" in " ".join(page.inner_text(f"#{one}") for one in described)
    assert page.evaluate("document.activeElement.id") == "id_firmware"
    assert console.axe() == []
    console.shot("new-vm-bios")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.keyboard.press("ArrowUp")
    expect(page.locator("#id_vtpm")).to_be_enabled()
    expect(page.locator("#id_secure_boot")).to_have_value("off")
    tab_to(page, "#id_vtpm")
