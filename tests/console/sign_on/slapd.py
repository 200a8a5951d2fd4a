"""A real directory: OpenLDAP's slapd, unpacked by the launcher (console/launch/receivers.py), with a few people."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.layout import free_ports
from lab.pki import Authority, Issued
from tests.console.appliance.receivers import folder

SUFFIX: Final = "dc=example,dc=org"
SERVICE: Final = f"cn=bartizan,{SUFFIX}"
SERVICE_PASSWORD: Final = "planted-service-password"
PEOPLE: Final = {"bob": "planted-password-of-bob", "carol": "planted-password-of-carol", "administrator": "x" * 16}

CONFIG: Final = """\
include {root}/etc/ldap/schema/core.schema
include {root}/etc/ldap/schema/cosine.schema
include {root}/etc/ldap/schema/inetorgperson.schema
include {root}/etc/ldap/schema/nis.schema
modulepath {root}/usr/lib/ldap
moduleload back_mdb
pidfile {state}/pid
argsfile {state}/args
TLSCACertificateFile {state}/ca.pem
TLSCertificateFile {state}/cert.pem
TLSCertificateKeyFile {state}/key.pem
security simple_bind=128
database mdb
suffix "{suffix}"
directory {state}/db
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
"""
PERSON: Final = """
dn: uid={name},ou=people,{suffix}
objectClass: inetOrgPerson
uid: {name}
cn: {name} of the directory
sn: {name}
userPassword: {password}
"""
ENTRIES: Final = """\
dn: {suffix}
objectClass: dcObject
objectClass: organization
o: Example

dn: ou=people,{suffix}
objectClass: organizationalUnit

dn: ou=groups,{suffix}
objectClass: organizationalUnit

dn: {service}
objectClass: applicationProcess
objectClass: simpleSecurityObject
userPassword: {password}

dn: cn=auditors,ou=groups,{suffix}
objectClass: groupOfNames
member: uid=bob,ou=people,{suffix}

dn: cn=everybody,ou=groups,{suffix}
objectClass: groupOfNames
member: cn=auditors,ou=groups,{suffix}

dn: cn=posix,ou=groups,{suffix}
objectClass: posixGroup
gidNumber: 1000
memberUid: bob
"""


@dataclass(slots=True)
class Directory:
    """Listens with and without TLS from the first byte; without, it refuses passwords before StartTLS. Also at
    127.0.0.2, which is not in its certificate."""

    ldaps: str
    ldap: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=20)


def start(state: Path, authority: Authority, identity: Issued) -> Directory:
    root = folder()
    (state / "db").mkdir()
    for name, content in {
        "ca.pem": authority.certificate_pem, "cert.pem": identity.certificate_pem, "key.pem": identity.key_pem,
    }.items():  # fmt: skip
        (state / name).write_bytes(content)
    (state / "slapd.conf").write_text(CONFIG.format(root=root, state=state, suffix=SUFFIX))
    people = "".join(PERSON.format(name=name, password=one, suffix=SUFFIX) for name, one in PEOPLE.items())
    entries = ENTRIES.format(suffix=SUFFIX, service=SERVICE, password=SERVICE_PASSWORD)
    (state / "entries.ldif").write_text(entries + people)
    libraries = next(iter((root / "usr/lib").glob("*/libltdl.so.7"))).parent
    environment = {"PATH": os.defpath, "LD_LIBRARY_PATH": str(libraries), "LDAPNOINIT": "1"}
    program, config = str(root / "usr/sbin/slapd"), str(state / "slapd.conf")
    subprocess.run(
        [program, "-Tadd", "-f", config, "-l", str(state / "entries.ldif")], env=environment, check=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    for _ in range(3):  # ports were free a moment ago
        ldap, ldaps = free_ports(2)
        listen = f"ldap://127.0.0.1:{ldap} ldaps://127.0.0.1:{ldaps} ldap://127.0.0.2:{ldap} ldaps://127.0.0.2:{ldaps}"
        process = subprocess.Popen(
            [program, "-f", config, "-d", "0", "-h", listen], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if _listens(process, ldaps):
            return Directory(f"ldaps://127.0.0.1:{ldaps}", f"ldap://127.0.0.1:{ldap}", process)
    raise AssertionError("slapd does not listen")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.02)
    process.kill()
    process.wait()
    return False
