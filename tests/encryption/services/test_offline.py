"""A powered-off VM is encrypted and decrypted over real files, by qemu-img, swtpm and a real KMIP server; and what
stops it, each with a code of its own and the original as it was."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from encryption.adapters import image_files, swtpm
from encryption.engine import metadata
from encryption.models import Key, KmsCluster, Stage, VmSecurity, WrappedSecret
from encryption.services import client_keys, key_providers, offline
from inventory import jobs
from inventory.engine import domain_edit
from inventory.engine.hypervisor import OperationRefused, Power
from inventory.errors import Conflict
from inventory.models import Event, Job, JobStatus
from inventory.services import sync
from lab import kms
from tests.encryption.adapters.conftest import RunningKms
from tests.encryption.file_host import MemoryKeyServer
from tests.encryption.services.conftest import MakeWorld
from tests.encryption.world import Disk, Shape

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

ONE_RAW = Shape((Disk("vda", "raw"),), nvram=False, tpm=False)
ONE_QCOW2 = Shape((Disk("vda", "qcow2"),), nvram=False, tpm=False)


@pytest.fixture
def real_kms(alice: User, kms_server: RunningKms) -> KmsCluster:
    """A key provider whose trust was set up as a person does it."""
    made = key_providers.add_provider(name="Lab", host="127.0.0.1", port=kms_server.port, actor=alice)
    key_providers.trust_server(cluster_id=made.pk, certificate_pem=kms_server.ca_pem.decode(), actor=alice)
    jobs.run(str(key_providers.request_client_key(cluster_id=made.pk, actor=alice).pk), client_keys.create_client_key)
    made.refresh_from_db()
    signed = kms.sign_client_csr(kms_server.layout, made.client_csr_pem.encode())
    return key_providers.install_client_certificate(cluster_id=made.pk, certificate_pem=signed.decode(), actor=alice)


def test_whole_way_with_a_real_key_server_and_a_real_tpm(make_world: MakeWorld, real_kms: KmsCluster) -> None:
    world = make_world()
    shutil.rmtree(world.tpm_folder)
    world.tpm_folder.mkdir()
    subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpmstate", str(world.tpm_folder), "--logfile", "/dev/null"],
        check=True,
        capture_output=True,
    )
    (world.tpm_folder / ".lock").unlink(missing_ok=True)
    state = swtpm.state_file(world.tpm_folder)
    assert state.read_bytes()[4:6] == b"\0\0"

    world.succeed(world.all_disks())
    world.check_encrypted("vda", "vdb")
    assert state.read_bytes()[4:6] == b"\0\x09"
    for row in world.secrets.values():
        if row.purpose != "vtpm":
            dumped = subprocess.run(["cryptsetup", "luksDump", row.path], check=True, capture_output=True, text=True)
            assert "xts-plain64" in dumped.stdout and "MK bits:       \t512" in dumped.stdout
    (key,) = Key.objects.all()
    assert key.state == Key.State.ACTIVE and key.cluster == real_kms
    told = domain_edit.metadata(world.hypervisor.xml[world.uuid], metadata.NAMESPACE)
    assert told is not None
    protected = metadata.from_xml(told)
    assert protected.kek_id == key.key_id and protected.kms_cluster == real_kms.pk
    assert {(one.secret_uuid, one.wrapped) for one in protected.secrets} == {
        (row.secret_uuid, bytes(row.wrapped)) for row in world.secrets.values()
    }
    assert 'dumpCore="off"' in world.hypervisor.xml[world.uuid]
    assert Event.objects.filter(kind="vm.encrypted").count() == 1

    world.succeed(world.nothing())
    world.check_plain()
    assert state.read_bytes()[4:6] == b"\0\0"
    assert domain_edit.metadata(world.hypervisor.xml[world.uuid], metadata.NAMESPACE) is None
    assert "dumpCore" not in world.hypervisor.xml[world.uuid]


def test_some_disks_then_one_more_then_fewer(make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None) -> None:
    world = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "raw"), Disk("vdc", "qcow2"))))
    world.succeed(world.wish("vdb"))
    world.check_encrypted("vdb")
    world.succeed(world.wish("vdb", "vdc"))
    world.check_encrypted("vdb", "vdc")
    assert len(keys.keys) == 1
    world.succeed(world.wish("vdc", "vda"))
    world.check_encrypted("vda", "vdc")
    world.succeed(world.wish())
    world.check_encrypted()
    assert VmSecurity.objects.get().key is not None
    world.succeed(world.nothing())
    world.check_plain()


def test_nothing_to_do_is_said(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(ONE_RAW)
    with pytest.raises(Conflict) as told:
        world.ask(world.nothing())
    assert told.value.code == "nothing_to_do"


def test_new_nvram_comes_from_the_template(make_world: MakeWorld, keys: MemoryKeyServer, tmp_path: Path) -> None:
    world = make_world(Shape((), nvram=True, tpm=False))
    path = world.folder / "vm_VARS.fd"
    path.unlink()
    template = tmp_path / "template.fd"
    store = bytes(40) + b"_FVH" + bytes(4052)
    world.plain[str(path)] = store
    for bad in (b"root:x:0:0:", store[:40]):
        template.write_bytes(bad)
        world.hypervisor.xml[world.uuid] = world.hypervisor.xml[world.uuid].replace(
            "<nvram>", f"<nvram template='{template}'>"
        )
        world.refuse(world.wish(), "nvram_missing")
        assert not path.exists()
    template.write_bytes(store)
    world.succeed(world.wish())
    world.check_encrypted()


@contextmanager
def held_by_qemu(path: str, image_format: str) -> Iterator[None]:
    """A process that has the image open for writing, as a running VM has."""
    process = subprocess.Popen(
        ["qemu-io", "-f", image_format, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write("length\n")
        process.stdin.flush()
        process.stdout.readline()
        yield
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize("shape", [ONE_RAW, ONE_QCOW2], ids=["raw", "qcow2"])
def test_image_that_a_qemu_writes_to(make_world: MakeWorld, keys: MemoryKeyServer, shape: Shape) -> None:
    world = make_world(shape)
    disk = shape.disks[0]
    with held_by_qemu(f"{world.folder}/vda.{disk.format}", disk.format):
        world.refuse(world.all_disks(), "image_in_use")
    world.check_plain()
    world.succeed(world.all_disks())
    world.check_encrypted("vda")


def _snapshot(path: Path) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "one", path], check=True)


def _backing(path: Path) -> None:
    path.rename(path.with_name("base"))
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(path.with_name("base")), "-F", "qcow2", str(path)],
        check=True,
    )


def _data_file(path: Path) -> None:
    path.unlink()
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={path}.data", str(path), "1M"]
    subprocess.run(made, check=True)


def _symlink(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _absurd(path: Path) -> None:
    path.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", str(path), "2E"], check=True)


@pytest.mark.parametrize(
    ("shape", "spoil", "code"),
    [
        pytest.param(ONE_QCOW2, _snapshot, "snapshots_present", id="snapshot"),
        pytest.param(ONE_QCOW2, _backing, "disk_has_backing", id="backing"),
        pytest.param(ONE_QCOW2, _data_file, "disk_has_data_file", id="data file"),
        pytest.param(ONE_QCOW2, _symlink, "image_not_regular", id="link qcow2"),
        pytest.param(ONE_RAW, _symlink, "image_not_regular", id="link raw"),
        pytest.param(ONE_RAW, _fifo, "image_not_regular", id="fifo"),
        pytest.param(ONE_RAW, Path.unlink, "image_missing", id="missing"),
        pytest.param(ONE_QCOW2, Path.unlink, "image_missing", id="missing qcow2"),
        pytest.param(ONE_RAW, _empty, "image_empty", id="empty"),
        pytest.param(ONE_QCOW2, _empty, "image_unreadable", id="no qcow2"),
        pytest.param(ONE_QCOW2, _absurd, "image_too_large", id="absurd size"),
    ],
)
def test_image_that_cannot_be_converted(
    make_world: MakeWorld, keys: MemoryKeyServer, shape: Shape, spoil: Callable[[Path], None], code: str
) -> None:
    world = make_world(shape)
    spoil(world.folder / f"vda.{shape.disks[0].format}")
    before = world.files()
    world.refuse(world.all_disks(), code)
    assert world.files() == before
    assert not WrappedSecret.objects.exists() and not VmSecurity.objects.exists()


def test_too_little_space(make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(ONE_RAW)
    monkeypatch.setattr(image_files, "free_bytes", lambda path: 2**20)
    job = world.refuse(world.all_disks(), "space_missing")
    assert "MiB are needed" in job.message
    world.check_plain()


def during_conversion(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` happens right after the last part was converted."""
    converted = offline._convert

    def convert(*args: object) -> str:
        state = converted(*args)  # type: ignore[arg-type]
        act()
        return state

    monkeypatch.setattr(offline, "_convert", convert)


def test_source_written_to_meanwhile(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program does that does not look at QEMU's locks."""
    world = make_world(ONE_RAW)
    path = world.folder / "vda.raw"
    during_conversion(monkeypatch, lambda: path.write_bytes(path.read_bytes()))
    world.refuse(world.all_disks(), "source_changed")
    world.check_plain()


def test_qemu_is_locked_out_until_the_definition_is_switched(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "qcow2")), nvram=False, tpm=False))
    answers: list[str] = []

    def write() -> None:
        for disk in world.shape.disks:
            done = subprocess.run(
                ["qemu-io", "-f", disk.format, "-c", "write 0 512", f"{world.folder}/{disk.target}.{disk.format}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            answers.append(done.stderr + done.stdout)

    during_conversion(monkeypatch, write)
    world.succeed(world.all_disks())
    assert len(answers) == 4 and all("Failed to get" in answer for answer in answers), answers
    world.check_encrypted("vda", "vdb")


def test_vm_started_meanwhile(make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(ONE_RAW)
    during_conversion(monkeypatch, lambda: world.hypervisor.power_on(world.uuid))
    world.refuse(world.all_disks(), "vm_started_meanwhile")
    world.check_plain()


def test_disk_that_was_grown_while_encrypted_keeps_its_new_end(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(ONE_RAW)
    world.succeed(world.all_disks())
    row = world.secrets["vda"]
    passphrase = world.passphrases()[row.secret_uuid]
    secret = f"secret,id=k,data={passphrase.reveal().decode()}"
    image = f"driver=luks,key-secret=k,file.filename={row.path}"
    subprocess.run(["qemu-img", "resize", "-q", "--object", secret, "--image-opts", image, "+64K"], check=True)
    subprocess.run(
        ["qemu-io", "--object", secret, "--image-opts", "-c", "write -P 0x41 384K 64K", image],
        check=True, capture_output=True,
    )  # fmt: skip
    world.succeed(world.nothing())
    name = str(world.folder / "vda.raw")
    assert Path(name).read_bytes() == world.plain[name] + b"A" * 65536


def test_detached_disk_is_left_alone(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "raw")), nvram=False, tpm=False))
    world.succeed(world.all_disks())
    row = world.secrets["vdb"]
    kept = Path(row.path).read_bytes()
    xml = world.hypervisor.xml[world.uuid]
    begin = xml.rindex("<disk")
    world.hypervisor.xml[world.uuid] = xml[:begin] + xml[xml.index("</disk>", begin) + 7 :]
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    WrappedSecret.objects.filter(pk=row.pk).update(stage=Stage.DECRYPTING)  # an earlier change was killed right there
    world.succeed(world.nothing())
    assert Path(row.path).read_bytes() == kept
    assert set(world.secrets) == {"vdb"}


def test_another_disk_in_the_place_of_an_encrypted_one(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(ONE_RAW)
    world.succeed(world.all_disks())
    row = world.secrets["vda"]
    other = world.folder / "other.raw"
    other.write_bytes(bytes(65536))
    world.hypervisor.xml[world.uuid] = domain_edit.set_disk(
        world.hypervisor.xml[world.uuid], "vda", path=str(other), format="raw", secret_uuid=None
    )
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    world.succeed(world.all_disks())
    assert world.secrets["vda"].secret_uuid != row.secret_uuid
    row.refresh_from_db()
    assert row.stage == "detached" and Path(row.path).exists(), "the key of what was taken out is kept"


def test_original_that_somebody_put_back_is_not_destroyed(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(Shape((Disk("vda", "raw"), Disk("vdb", "raw")), nvram=False, tpm=False))
    before = world.hypervisor.xml[world.uuid]
    world.succeed(world.wish("vda"))
    row = world.secrets["vda"]
    plain = world.folder / "vda.raw"
    plain.write_bytes(world.plain[str(plain)])
    WrappedSecret.objects.filter(pk=row.pk).update(stage=Stage.SWITCHED)
    world.hypervisor.xml[world.uuid] = before
    sync.refresh_virtual_machine(world.vm, world.hypervisor)
    world.refuse(world.wish("vda", "vdb"), "definition_changed")
    assert plain.read_bytes() == world.plain[str(plain)]


def test_crashed_vm(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(ONE_RAW)
    world.hypervisor.change(world.uuid, power=Power.CRASHED)
    world.refuse(world.all_disks(), "vm_crashed")


def test_host_that_refuses_the_definition(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    world = make_world(ONE_RAW)
    world.hypervisor.failures["redefine"] = OperationRefused("refused", "unsupported configuration")
    world.refuse(world.all_disks(), "refused")
    world.check_plain()
    del world.hypervisor.failures["redefine"]
    world.succeed(world.all_disks())
    world.check_encrypted("vda")


def test_failed_change_leaves_an_older_policy(make_world: MakeWorld, keys: MemoryKeyServer) -> None:
    """A VM with nothing but a policy and a key keeps them when encrypting its first disk fails."""
    world = make_world(ONE_RAW)
    world.succeed(world.wish())
    path = world.folder / "vda.raw"
    path.rename(world.folder / "away")
    world.refuse(world.wish("vda"), "image_missing")
    assert VmSecurity.objects.get().key is not None
    (world.folder / "away").rename(path)
    world.succeed(world.wish("vda"))
    world.check_encrypted("vda")


def test_run_again_between_its_last_event_and_its_end_it_tells_once(
    make_world: MakeWorld, keys: MemoryKeyServer, quick_tpm: None
) -> None:
    world = make_world()
    for wish, kind in ((world.all_disks(), "vm.encrypted"), (world.nothing(), "vm.decrypted")):
        job = world.succeed(wish)
        Job.objects.filter(pk=job.pk).update(status=JobStatus.PENDING, claim=None)  # as after a kill right there
        world.run(job)
        assert Event.objects.filter(kind=kind, job=job).count() == 1


def test_a_key_that_a_given_up_change_made_is_left_and_told(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(ONE_RAW)
    monkeypatch.setattr(image_files, "free_bytes", lambda path: 2**20)
    job = world.refuse(world.all_disks(), "space_missing")
    key = Key.objects.get()
    assert key.state == Key.State.ACTIVE and not key.virtual_machines.exists()
    (event,) = Event.objects.filter(kind="key.unused")
    assert (event.data["key_id"], event.job, event.actor) == (key.key_id, job, "alice")


def test_bug_whose_text_holds_a_key_tells_nobody(
    make_world: MakeWorld, keys: MemoryKeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planted = "planted-key-5f2c"

    def broken(*args: object) -> str:
        raise RuntimeError(planted) from ValueError(planted)

    world = make_world(ONE_RAW)
    monkeypatch.setattr(offline, "_convert", broken)
    job = world.apply(world.all_disks())
    assert (job.status, job.error_code) == (JobStatus.ERRORED, "internal_error")
    everything = [str(list(model.objects.values())) for model in (Job, Event, WrappedSecret)] + [caplog.text]
    assert not [text for text in everything if planted in text]
