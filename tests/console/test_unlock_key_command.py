"""A VM's passphrases from its definition and a real key server, and every way in which that can fail."""

import base64
import os
import re
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from encryption.engine import keywrap, luks, metadata
from encryption.engine.metadata import ProtectedVm, Purpose, WrappedKey
from encryption.engine.secret import Secret
from lab import kms
from lab.pki import Authority
from tests.console.disk_command import disk, names_in, program, refused, write_key
from tests.encryption.adapters.conftest import RunningKms, serving

SIZE = 2**20
PARTS: tuple[tuple[Purpose, str], ...] = (("disk", "vda"), ("nvram", "nvram"), ("vtpm", "vtpm"))
DEAD = "127.0.0.1:1"


class Vm:
    """A protected VM: its data keys, its definition in a file, and the TOML file for the key server."""

    def __init__(self, folder: Path, server: RunningKms, kek_id: str, kek: Secret) -> None:
        self.folder = folder
        self.kek_id = kek_id
        self.keys = {target: Secret.generate(32) for _, target in PARTS}
        secrets = tuple(
            WrappedKey(purpose, target, uuid.uuid4(), keywrap.wrap(kek, self.keys[target]), self.kek_id, "raw", SIZE)
            for purpose, target in PARTS
        )
        self.protected = ProtectedVm(uuid.uuid4(), "KMS", self.kek_id, "VM Encryption Policy", secrets)
        self.define(metadata.to_xml(self.protected))
        self.configure([f"127.0.0.1:{server.port}"], server)

    @property
    def xml(self) -> Path:
        return self.folder / "vm.xml"

    @property
    def config(self) -> Path:
        return self.folder / "kms.toml"

    @property
    def output(self) -> Path:
        return self.folder / "keys"

    def words(self, *more: str | Path) -> tuple[str | Path, ...]:
        where = () if "--print" in more else ("--output", self.output)
        return ("unlock-key", "--domain-xml", self.xml, "--kms-config", self.config, *where, *more)

    def passphrase(self, target: str) -> str:
        return self.keys[target].passphrase_text().decode()

    def define(self, element: str) -> None:
        """As libvirt writes it to /etc/libvirt/qemu, with other people's metadata beside."""
        self.xml.write_text(
            "<!-- WARNING: THIS IS AN AUTO-GENERATED FILE. -->\n<domain type='qemu'>\n  <name>vm</name>\n  <metadata>\n"
            f"    <x:os xmlns:x='http://libosinfo.org/xmlns/libvirt/domain/1.0'/>\n    {element}\n  </metadata>\n"
            "  <devices/>\n</domain>\n"
        )

    def configure(self, servers: list[str], server: RunningKms, name: str = "console") -> None:
        issued = kms.issue_client(server.layout, name)
        (self.folder / "ca.pem").write_bytes(server.ca_pem)
        (self.folder / "client.pem").write_bytes(issued.certificate_pem)
        write_key(self.folder / "client.key", issued.key_pem)
        self.config.write_text(
            f'servers = {servers}\nca = "ca.pem"\ncertificate = "client.pem"\nkey = "client.key"\ntimeout = 5\n'
        )

    def edit_config(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def kek(kms_server: RunningKms) -> tuple[str, Secret]:
    with kms_server.client() as client:
        key_id = client.create_key(name=f"key {os.urandom(8).hex()}")
        client.activate(key_id)
        return key_id, client.get_key(key_id)


@pytest.fixture
def vm(tmp_path: Path, kms_server: RunningKms, kek: tuple[str, Secret]) -> Vm:
    return Vm(tmp_path, kms_server, *kek)


@pytest.fixture(scope="module")
def other_kms() -> Iterator[RunningKms]:
    """Another site's: keys with the same ids as the first one's, and other bytes."""
    with tempfile.TemporaryDirectory(prefix="kms-", dir="/var/tmp") as name:
        base = Path(name)
        base.chmod(0o755)
        with serving(kms.prepare(base / "kms", 5696), "other") as running:
            with running.client() as client:
                client.activate(client.create_key(name="somebody else's"))
            yield running


def test_every_part_is_unlocked(vm: Vm, tmp_path: Path) -> None:
    done = disk(*vm.words())
    assert names_in(vm.output) == {"vda.key", "nvram.key", "vtpm.key"}
    assert stat.S_IMODE(vm.output.stat().st_mode) == 0o700
    for part in vm.protected.secrets:
        file = vm.output / f"{part.target}.key"
        assert file.read_text() == vm.passphrase(part.target)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert vm.passphrase(part.target) not in done.out + done.err
        assert re.search(f"^{part.target} +secret {part.secret_uuid} +was raw, {SIZE} bytes +{file}$", done.out, re.M)

    # And the passphrase does open the disk: one that the console made, with the data key as text.
    volume = luks.create(Secret(vm.passphrase("vda").encode()))
    (tmp_path / "vda.luks").write_bytes(volume.header_bytes + bytes(SIZE))
    disk("decrypt", tmp_path / "vda.luks", tmp_path / "vda.raw", "--key-file", vm.output / "vda.key")
    assert (tmp_path / "vda.raw").stat().st_size == SIZE


def test_as_a_program_without_any_environment(vm: Vm) -> None:
    done = subprocess.run(program(*vm.words("--target", "nvram")), env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert names_in(vm.output) == {"nvram.key"}


def test_printed_only_when_asked_to(vm: Vm) -> None:
    assert disk(*vm.words("--print", "--target", "vtpm")).out == vm.passphrase("vtpm") + "\n"
    assert f"nvram {vm.passphrase('nvram')}\n" in disk(*vm.words("--print")).out
    neither = [str(word) for word in vm.words() if word not in {"--output", vm.output}]
    done = subprocess.run(program(*neither), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--output --print" in done.stderr


def test_the_element_alone_will_do(vm: Vm) -> None:
    vm.xml.write_text(metadata.to_xml(vm.protected))
    disk(*vm.words())
    assert len(names_in(vm.output)) == 3


def test_servers_are_tried_in_order(vm: Vm, kms_server: RunningKms, other_kms: RunningKms) -> None:
    """One that is down, one with a certificate of an unknown issuer, then the right one."""
    vm.configure([DEAD, f"127.0.0.1:{other_kms.port}", f"localhost:{kms_server.port}"], kms_server)
    disk(*vm.words())
    assert (vm.output / "vda.key").read_text() == vm.passphrase("vda")


def test_every_servers_failure_is_told(vm: Vm, kms_server: RunningKms, other_kms: RunningKms) -> None:
    vm.configure([DEAD, f"127.0.0.1:{other_kms.port}"], kms_server)
    text = refused(*vm.words("--target", "vda"), code="kms_server_ca_unknown")
    assert f"key server {DEAD}: refuses the connection" in text
    assert f"key server 127.0.0.1:{other_kms.port}: its certificate was not issued by the trusted CA" in text
    vm.configure([DEAD], kms_server)
    assert refused(*vm.words(), code="kms_unreachable").count(DEAD) == 3
    assert names_in(vm.output) == set()


def test_another_sites_key_server(vm: Vm, other_kms: RunningKms) -> None:
    vm.configure([f"127.0.0.1:{other_kms.port}"], other_kms)
    vm.define(metadata.to_xml(vm.protected).replace(f'kek-id="{vm.kek_id}"', 'kek-id="1"'))
    assert "another KMS" in refused(*vm.words(), code="wrapped_key_unusable")
    vm.define(metadata.to_xml(vm.protected).replace(f'kek-id="{vm.kek_id}"', 'kek-id="999999"'))
    refused(*vm.words(), code="kms_key_not_found")
    assert names_in(vm.output) == set()


def test_a_client_that_the_server_does_not_know(vm: Vm, kms_server: RunningKms, tmp_path: Path) -> None:
    issued = Authority.create(tmp_path / "ca", "Nobody's CA").issue("console", client=True)
    (tmp_path / "client.pem").write_bytes(issued.certificate_pem)
    write_key(tmp_path / "client.key", issued.key_pem)
    refused(*vm.words(), code="kms_client_ca_unknown")


def test_what_can_be_had_is_had(vm: Vm) -> None:
    """One wrapped key is damaged: the others are written, and the command fails."""
    vda = vm.protected.secrets[0]
    changed = bytes([vda.wrapped[0] ^ 1]) + vda.wrapped[1:]
    old, new = (base64.b64encode(blob).decode() for blob in (vda.wrapped, changed))
    vm.define(metadata.to_xml(vm.protected).replace(old, new))
    text = refused(*vm.words(), code="wrapped_key_unusable")
    assert text.startswith("vda: ")
    assert names_in(vm.output) == {"nvram.key", "vtpm.key"}


def test_a_key_file_that_is_there_is_left_alone(vm: Vm) -> None:
    vm.output.mkdir()
    (vm.output / "vda.key").symlink_to(vm.folder / "elsewhere")
    refused(*vm.words(), code="key_file_exists")
    assert names_in(vm.output) == {"vda.key"}
    assert not (vm.folder / "elsewhere").exists()
    disk(*vm.words("--target", "nvram"))


def test_output_that_is_no_folder(vm: Vm) -> None:
    vm.output.write_text("a file")
    refused(*vm.words(), code="output_unusable")


def test_a_part_that_is_not_there(vm: Vm) -> None:
    assert "vda, nvram, vtpm" in refused(*vm.words("--target", "vdz"), code="part_not_protected")


DAMAGES: dict[str, tuple[Callable[[str], str], str, int]] = {
    "cut off": (lambda xml: xml[: len(xml) // 2], "definition_malformed", 2),
    "empty": (lambda xml: "", "definition_malformed", 2),
    "no text": (lambda xml: xml.replace("vda", "\udcff"), "definition_malformed", 2),
    "entities": (
        lambda xml: "<!DOCTYPE d [<!ENTITY x SYSTEM '/etc/passwd'>]>" + xml.split("-->")[1], "definition_malformed", 2,
    ),
    "plain": (lambda xml: re.sub("<bartizan:protected-vm.*protected-vm>", "", xml), "not_protected", 1),
    "in a wrong place": (lambda xml: xml.replace("metadata>", "description>"), "not_protected", 1),
    "twice": (
        lambda xml: re.sub("(<bartizan:protected-vm.*protected-vm>)", r"\1\1", xml), "metadata_damaged", 1,
    ),
    "another version": (lambda xml: xml.replace('version="1"', 'version="2"'), "metadata_damaged", 1),
    "no base64": (lambda xml: re.sub(">[A-Za-z0-9+/=]{16,}<", ">***<", xml), "metadata_damaged", 1),
    "a path": (lambda xml: xml.replace('target="vda"', 'target="../../vda"'), "metadata_damaged", 1),
    "a hidden file": (lambda xml: xml.replace('target="vda"', 'target=".vda"'), "metadata_damaged", 1),
    "one name for two": (lambda xml: xml.replace('target="vda"', 'target="nvram"'), "metadata_damaged", 1),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_hostile_definitions(vm: Vm, damage: str) -> None:
    change, code, exit_code = DAMAGES[damage]
    before = vm.xml.read_text()
    after = change(before)
    assert after != before
    vm.xml.write_bytes(after.encode("utf-8", "surrogateescape"))
    refused(*vm.words(), code=code, exit_code=exit_code)
    assert not vm.output.exists()


def test_definitions_that_cannot_be_read(vm: Vm) -> None:
    vm.xml.unlink()
    refused(*vm.words(), code="definition_missing")
    vm.xml.mkdir()
    refused(*vm.words(), code="definition_unreadable")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("servers", "server"),
        ("timeout = 5", "timeout = 0"),
        ("timeout = 5", "timeout = true"),
        ("timeout = 5", "timeout = nan"),
        ("timeout = 5", "timeout = 301"),
        ("timeout = 5", "password = 'x'"),
        ('key = "client.key"', ""),
        ('key = "client.key"', "key = ''"),
        ('key = "client.key"', "key = 5"),
        ('key = "client.key"', 'key = "kms.toml"'),
        ("servers = [", "servers = ["[:-1] + "[" * 5000),
        ("servers = ['", "servers = ['https://"),
        ("servers = ['", "servers = ['user@"),
        ("servers = ['", "servers = ['host:0', '"),
        ("servers = ['", "servers = ['host:65536', '"),
        ("servers = ['", "servers = ['', '"),
        ("servers = ['", "servers = [5, '"),
        ("servers = ['", "servers = [] # ['"),
    ],
)
def test_configurations_that_are_none(vm: Vm, old: str, new: str) -> None:
    vm.edit_config(old, new)
    refused(*vm.words(), code="kms_config_malformed", exit_code=2)
    assert not vm.output.exists()


def test_configurations_that_cannot_be_read(vm: Vm) -> None:
    (vm.folder / "client.key").unlink()
    assert "client.key" in refused(*vm.words(), code="kms_config_missing")
    vm.config.write_bytes(b"\xff")
    refused(*vm.words(), code="kms_config_malformed", exit_code=2)
    vm.config.unlink()
    refused(*vm.words(), code="kms_config_missing")
    vm.config.mkdir()
    refused(*vm.words(), code="kms_config_unreadable")


def test_trust_that_cannot_be_used(vm: Vm) -> None:
    pem = (vm.folder / "ca.pem").read_text()
    (vm.folder / "ca.pem").write_text(pem.replace("\n", "\n!", 3))
    refused(*vm.words(), code="kms_trust_anchor_unusable")


def test_a_key_that_others_can_read_is_noted(vm: Vm) -> None:
    (vm.folder / "client.key").chmod(0o640)
    assert "client.key can be read by others" in disk(*vm.words()).err
