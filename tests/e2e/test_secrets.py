"""Keys are looked for, in every spelling, in all that the console writes and in every process's command line: after a
VM was encrypted, migrated, recrypted in all three ways, cloned, exported, imported and decrypted."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from encryption.engine import luks
from encryption.engine.secret import Secret
from lab import disks, guests
from lab.domains import UEFI
from lab.kms import KmsLayout
from lab.user import ensure_user
from tests.e2e.conftest import Installation, wait_until
from tests.e2e.test_copy_vm import ask, drop, wait_for_vm

pytestmark = pytest.mark.lab

NAME, CLONE, IMPORTED = "secrets-01", "secrets-02", "secrets-03"
# Every KEK that the key server has for us, also those of VMs that other tests had; what both keys of the console open.
KEYS = """
from encryption.models import Key, KmsCluster
from encryption.services.key_access import console_key, fetched_key, unsealed
owner = KmsCluster.objects.get(name="Lab KMS")
result = {"client": unsealed(owner, bytes(owner.client_key_sealed)).reveal().decode(),
          "console": console_key().reveal().hex(), "keks": []}
for key in owner.keys.filter(state="active"):
    with fetched_key(key) as kek:
        result["keks"].append(kek.reveal().hex())
"""


@pytest.fixture
def vm(installation: Installation) -> Iterator[str]:
    """A powered-off VM with UEFI, a vTPM and two small disks on host-a."""
    host, user = installation.lab.host("a"), ensure_user()
    folder = host.datastore / NAME
    user.folder(folder)
    for name in ("vda", "vdb"):
        (folder / f".{name}").write_bytes(name.encode() * 2**19)
        disks.adopt(folder / f".{name}", folder / f"{name}.raw", user)
    shutil.copyfile(UEFI.variables, folder / ".nvram")
    disks.adopt(folder / ".nvram", folder / "nvram.fd", user)
    attached = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{folder}/{name}.raw'/>"
        f"<target dev='{name}' bus='virtio'/></disk>"
        for name in ("vda", "vdb")
    )
    with guests.connected(host) as connection:
        connection.defineXML(
            f"<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>128</memory><os><type arch='x86_64' "
            f"machine='q35'>hvm</type><loader readonly='yes' type='pflash'>{UEFI.code}</loader>"
            f"<nvram template='{UEFI.variables}'>{folder}/nvram.fd</nvram></os><features><acpi/></features>"
            f"<devices>{attached}<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        )
    wait_for_vm(installation, NAME)
    yield NAME
    for name in (NAME, CLONE, IMPORTED):
        for place in ("a", "b"):
            drop(installation, place, name)


def spellings(key: bytes) -> list[bytes]:
    text = key.hex()
    found = [key, text.encode(), text.upper().encode(), base64.b64encode(key), repr(key)[2:-1].encode()]
    return [*found, base64.b64encode(text.encode())]


def opened(installation: Installation, name: str) -> set[bytes]:
    """The data keys of a VM, whose hexadecimal digits are the passphrases, and the volume keys that they open."""
    passphrases = installation.passphrases(name)
    assert set(passphrases) == {"vda", "vdb", "nvram", "vtpm"}
    paths = {**installation.sources(name), "nvram": installation.vm(name)["nvram_path"]}
    found = {bytes.fromhex(passphrase) for passphrase in passphrases.values()}
    for part, path in paths.items():
        with open(path, "rb") as file:
            found.add(luks.unlock(file.read(luks.PREFIX_BYTES), Secret(passphrases[part].encode())).reveal())
    return found


def import_bundle(installation: Installation) -> None:
    host = installation.vm(NAME)["host_id"]
    path = f"/encryption/hosts/{host}/import/"
    page = installation.user.get(path)

    def choice(field: str, start: str) -> str:
        options = page.form("/import/").xpath(f'.//select[@name="{field}"]/option')
        return str(next(one.get("value") for one in options if one.text_content().startswith(start)))

    chosen: dict[str, Any] = {"bundle": choice("bundle", NAME), "datastore": choice("datastore", "")}
    answer = installation.user.submit(page, "/import/", name=IMPORTED, identity="copy", **chosen)
    assert answer.status == 200, answer.words()[:500]

    def ended() -> bool:
        (job,) = installation.rows("SELECT * FROM inventory_job WHERE kind = 'encryption.import_vm'")
        assert job["status"] in ("pending", "running", "succeeded"), job["message"]
        return bool(job["status"] == "succeeded")

    wait_until("the bundle is imported", ended)


def test_no_key_is_found_in_database_broker_logs_jobs_events_or_command_lines(
    installation: Installation, vm: str
) -> None:
    installation.encrypt(vm, ["vda", "vdb"])
    installation.change_power(vm, "on")
    command_lines = read_command_lines()
    installation.ask_migration(vm, "host-b")
    installation.finish_job(vm)
    command_lines += read_command_lines()
    installation.change_power(vm, "off")
    keys = opened(installation, vm)
    for way, parts in (("key", []), ("passphrases", []), ("volume_keys", ["vda", "vdb", "nvram", "vtpm"])):
        installation.recrypt(vm, way, parts)
        if way != "key":
            keys |= opened(installation, vm)
    assert len(keys) == 4 + 3 + 3 + 4 + 3
    ask(installation, vm, "clone", name=CLONE, key="new", vtpm="copy")
    ask(installation, vm, "export")
    import_bundle(installation)
    pages = [
        installation.path(vm), installation.path(vm, "monitor/"), installation.options_path(vm), "/encryption/kms/",
        installation.path(CLONE), installation.path(IMPORTED), "/encryption/exports/",
    ]  # fmt: skip
    shown = {path: installation.user.get(path).text.encode() for path in pages}
    installation.decrypt(vm)

    ours = installation.manage(KEYS)
    client = [line.encode() for line in ours["client"].splitlines()[1:-1]]
    needles = [one for key in {*keys, bytes.fromhex(ours["console"])} for one in spellings(key)] + client
    keks = [one for kek in ours["keks"] for one in spellings(bytes.fromhex(kek))]
    assert len(ours["keks"]) >= 3 and len(client) > 2
    haystacks = {str(path): content for path, content in written_files(installation)} | shown | tables(installation)
    haystacks["command lines"] = command_lines
    assert any("/data/base/" in path for path in haystacks) and any("/data/pg_wal/" in path for path in haystacks)
    assert any("/redis/" in path and content for path, content in haystacks.items())
    assert any(path.endswith(".log") and content for path, content in haystacks.items())
    assert any("/exchange/" in path and path.endswith(".luks") for path in haystacks)
    key_server = KmsLayout.load(installation.state / "lab" / "kms").database.name  # holds the KEKs: that is its work
    leaks = [
        (place, index)
        for place, content in haystacks.items()
        for index, one in enumerate(needles if Path(place).name.startswith(key_server) else needles + keks)
        if one in content
    ]
    assert not leaks


def test_the_search_would_find_a_key(installation: Installation) -> None:
    """The control: what must be there is found by the same means."""
    found = [str(path) for path, content in written_files(installation) if b"uefi-01" in content]
    assert any("/data/base/" in path for path in found) and any("/data/pg_wal/" in path for path in found)
    assert b"uefi-01" in tables(installation)["inventory_virtualmachine"]
    assert b"gunicorn" in read_command_lines()


def written_files(installation: Installation) -> list[tuple[Path, bytes]]:
    """All that console, database, broker and hosts keep, exported VMs included, but for the secrets folder itself and
    images of disks."""
    installation.database.execute("CHECKPOINT")  # what PostgreSQL has in memory only
    left_out = {"secrets", "datastores", "cache", "assets", "static", "test-assets", "guests"}
    found = []
    for top in (installation.state, installation.servers.place):
        for folder, folders, names in os.walk(top, followlinks=True):
            folders[:] = [one for one in folders if one not in left_out]
            for name in names:
                path = Path(folder) / name
                with suppress(FileNotFoundError):  # PostgreSQL's own come and go
                    found += [(path, path.read_bytes())] if path.is_file() else []
    return found


def tables(installation: Installation) -> dict[str, bytes]:
    """The rows of every table as text, where the files may hold them compressed."""
    found = {}
    for row in installation.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        name = row["tablename"]
        with installation.database.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name))) as copy:
            found[name] = b"".join(bytes(part) for part in copy)
    return found


def read_command_lines() -> bytes:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found.append((process / "cmdline").read_bytes())
            except OSError:
                continue
    return b"\n".join(found)
