"""Bundles that nobody should trust, and what is refused before a byte is copied."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from encryption import tasks
from encryption.models import Bundle
from encryption.services import bundles, import_vm
from encryption.services.import_vm import Identity
from inventory.errors import Conflict, Invalid, NotFound, Refused
from inventory.models import Datastore, Event, Host, Job, JobStatus
from tests.api_client import caller
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.services.real_kms import run
from tests.encryption.services.test_exchange import ask, exchange, exported, plain, remove, target, world
from tests.encryption.world import TPM_PLAIN, Disk, Shape, World

__all__ = ["exchange", "plain", "target", "world"]

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
Spoil = Callable[[Path], None]


def edit(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        told = json.loads((folder / "manifest.json").read_text())
        change(told)
        (folder / "manifest.json").write_text(json.dumps(told))

    return spoil


def define(old: str, new: str) -> Spoil:
    """A changed definition with a digest that fits: whoever sends a bundle can do that."""

    def spoil(folder: Path) -> None:
        xml = (folder / "definition.xml").read_text()
        assert old in xml
        put(folder, "definition.xml", xml.replace(old, new, 1).encode())

    return spoil


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)

    def change(told: dict[str, Any]) -> None:
        for file in told["files"]:
            if file["name"] == name:
                file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit(change)(folder)


def relink(folder: Path) -> None:
    (folder / "vda.luks").unlink()
    (folder / "vda.luks").symlink_to("/etc/passwd")


def pipe(folder: Path) -> None:
    (folder / "vda.luks").unlink()
    os.mkfifo(folder / "vda.luks")


def flip(folder: Path) -> None:
    data = bytearray((folder / "vda.luks").read_bytes())
    data[-1] ^= 1
    (folder / "vda.luks").write_bytes(data)


HOSTILE = {
    "a changed disk": (flip, "bundle_refused"),
    "a shorter disk": (lambda folder: os.truncate(folder / "vda.luks", 100), "bundle_refused"),
    "a disk that is missing": (lambda folder: (folder / "vda.luks").unlink(), "bundle_refused"),
    "a symbolic link": (relink, "bundle_refused"),
    "a pipe": (pipe, "bundle_refused"),
    "no json": (lambda folder: (folder / "manifest.json").write_bytes(b"{"), "bundle_refused"),
    "a path upwards": (edit(lambda told: told["files"][1].update(name="../../etc/passwd")), "bundle_refused"),
    "a disk that is plain": (lambda folder: put(folder, "vda.luks", bytes(8192)), "bundle_refused"),
    "vtpm state that is plain": (lambda folder: put(folder, "vtpm.permall", TPM_PLAIN), "bundle_refused"),
    "another definition": (lambda folder: (folder / "definition.xml").write_text("<domain/>"), "bundle_refused"),
    "a doctype": (define("<domain", "<!DOCTYPE x [<!ENTITY a 'b'>]><domain"), "bad_definition"),
    "options for qemu": (
        define("</domain>", "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/></domain>"),
        "definition_refused",
    ),
    "a file of the host as a disk": (define('file="vda.luks"', 'file="/etc/shadow"'), "definition_refused"),
    "a folder of the host": (define("</devices>", "<filesystem type='mount'/></devices>"), "definition_refused"),
    "a device of the host": (define("</devices>", "<hostdev mode='subsystem'/></devices>"), "definition_refused"),
    "another emulator": (define("<devices>", "<devices><emulator>/tmp/x</emulator></devices>"), "bad_definition"),
    "an emulator": (define("<devices>", "<devices><emulator>/tmp/x</emulator>"), "definition_refused"),
    "a log over a file": (
        define("</devices>", "<serial type='file'><source path='/etc/cron.d/x'/></serial></devices>"),
        "definition_refused",
    ),
    "one disk more": (
        define("</devices>", "<disk type='file'><source file='x'/><target dev='vdz'/></disk></devices>"),
        "definition_refused",
    ),
}  # fmt: skip


def refused_on_the_page(admin: Client, target: World, bundle: Bundle, identity: Identity) -> str:
    """The code that the import from that page ended with, as the API tells it."""
    store = Datastore.objects.get(host=target.host, name="store")
    form = {"bundle": str(bundle.pk), "datastore": str(store.pk), "name": "app-01", "identity": identity.value}
    Job.objects.all().delete()
    assert admin.post(reverse("encryption:import-vm", args=[target.host.pk]), form).status_code == 302
    job = Job.objects.get()
    tasks.import_a_vm(str(job.pk))
    told = caller(target.actor).get(f"/jobs/{job.pk}").body
    assert told["status"] == "failed"
    return str(told["error_code"])


class TestHostile:
    @pytest.fixture
    def world(self, make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> World:
        made = make_world(Shape((Disk("vda", "raw", 4096),)))
        made.succeed(made.all_disks())
        return made

    @pytest.mark.slow  # what refuses is tested quickly in the engines
    @pytest.mark.parametrize("case", HOSTILE)
    def test_refused_by_code_and_nothing_is_left(self, world: World, target: World, exchange: Path, case: str) -> None:
        spoil, code = HOSTILE[case]
        bundle = exported(world)
        spoil(exchange / bundle.folder)
        before, definitions = set(target.folder.rglob("*")), dict(target.hypervisor.xml)
        job = run(ask(target, bundle, identity=Identity.COPY), import_vm.run_import_vm)
        assert (job.status, job.error_code) == (JobStatus.FAILED, code), job.message
        assert set(target.folder.rglob("*")) == before and target.hypervisor.xml == definitions

    @pytest.mark.parametrize("case", ["a changed disk", "a doctype", "a file of the host as a disk"])
    def test_told_to_who_asked_on_the_page(
        self, admin: Client, world: World, target: World, exchange: Path, case: str
    ) -> None:
        spoil, code = HOSTILE[case]
        bundle = exported(world)
        spoil(exchange / bundle.folder)
        assert refused_on_the_page(admin, target, bundle, Identity.COPY) == code

    def test_vtpm_state_of_an_earlier_stay_on_the_page(self, admin: Client, world: World, target: World) -> None:
        bundle = exported(world)
        remove(world)
        state = target.tpm_base / str(world.uuid) / "tpm2" / "tpm2-00.permall"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"earlier")
        assert refused_on_the_page(admin, target, bundle, Identity.MOVE) == "vtpm_state_exists"

    def test_a_secret_whose_key_is_not_in_the_definition(self, world: World, target: World, exchange: Path) -> None:
        bundle = exported(world)
        secret = str(world.secrets["vda"].secret_uuid)
        define(f'type="passphrase" uuid="{secret}"', f'type="passphrase" uuid="{uuid4()}"')(exchange / bundle.folder)
        job = run(ask(target, bundle, identity=Identity.COPY), import_vm.run_import_vm)
        assert job.error_code == "bundle_refused" and "wrapped keys" in job.message

    def test_an_image_behind_an_image(self, plain: World, target: World, exchange: Path) -> None:
        bundle = exported(plain, in_clear=True)
        data = bytearray((exchange / bundle.folder / "vdb.qcow2").read_bytes())
        data[8:16] = (512).to_bytes(8, "big")
        put(exchange / bundle.folder, "vdb.qcow2", bytes(data))
        job = run(ask(target, bundle, identity=Identity.COPY), import_vm.run_import_vm)
        assert job.error_code == "bundle_refused" and "another one behind it" in job.message

    def test_told_in_the_list(self, world: World, exchange: Path) -> None:
        bundle = exported(world)
        (exchange / bundle.folder / "manifest.json").write_bytes(b"{}")
        (exchange / "by hand").mkdir()
        (exchange / "empty").mkdir()
        (exchange / "link").symlink_to("/etc")
        assert bundles.look() == 2
        assert {row.folder: row.state for row in Bundle.objects.all()} == {
            bundle.folder: "unusable", "empty": "unusable",
        }  # fmt: skip
        assert Event.objects.filter(kind="bundle.found", severity="warning").count() == 1


class TestRefused:
    def test_by_input(self, world: World, target: World, charlie: User) -> None:
        bundle = exported(world)
        for values, error, code in (
            ({"name": "a/b"}, Invalid, "name_invalid"),
            ({"name": "other"}, Conflict, "name_taken"),
            ({"host_id": uuid4()}, NotFound, "host_not_found"),
            ({"datastore_id": uuid4()}, NotFound, "datastore_not_found"),
            ({"bundle_id": uuid4()}, NotFound, "bundle_not_found"),
            ({"actor": charlie}, Refused, "not_permitted"),
        ):
            with pytest.raises(error) as refused:
                ask(target, bundle, identity=Identity.COPY, **values)
            assert refused.value.code == code

    def test_by_state(self, world: World, target: World) -> None:
        bundle = exported(world)
        Datastore.objects.filter(name="store").update(kind="logical")
        with pytest.raises(Invalid) as refused:
            ask(target, bundle, identity=Identity.COPY)
        assert refused.value.code == "datastore_unsupported"
        Datastore.objects.filter(name="store").update(kind="dir")
        Host.objects.filter(pk=target.host.pk).update(state=Host.State.DISCONNECTED)
        with pytest.raises(Conflict) as lost:
            ask(target, bundle, identity=Identity.COPY)
        assert lost.value.code == "host_disconnected"
        Host.objects.filter(pk=target.host.pk).update(state=Host.State.CONNECTED)
        Bundle.objects.update(state=Bundle.State.UNUSABLE)
        with pytest.raises(Conflict) as bad:
            ask(target, bundle, identity=Identity.COPY)
        assert bad.value.code == "bundle_unusable"
        Bundle.objects.update(state=Bundle.State.COMPLETE)
        ask(target, bundle, identity=Identity.COPY)
        with pytest.raises(Conflict) as busy:
            ask(target, bundle, name="app-02", identity=Identity.COPY)
        assert busy.value.code == "target_busy"

    def test_no_space(self, world: World, target: World, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle = exported(world)
        monkeypatch.setattr(target.hypervisor, "free_bytes", lambda folder: 0)
        job = run(ask(target, bundle, identity=Identity.COPY), import_vm.run_import_vm)
        assert job.error_code == "space_missing"
