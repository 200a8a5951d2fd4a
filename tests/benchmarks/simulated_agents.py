"""Many simulated attestation agents in one process: real TLS, real boots, real quotes by keys of software.

python -m tests.benchmarks.simulated_agents --agents 1000 --boots 10 --client-ca FILE

Nothing of it is a TPM. Each agent has a port, a TLS certificate, an attestation key and a certified endorsement key of
its own. Writes one JSON line: the maker's CA, and what each agent would have registered; serves until its input ends.
"""

import argparse
import asyncio
import base64
import json
import ssl
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from attestation.engine.ima.measurements import IMA_PCR
from attestation.engine.tpm.algorithms import HashAlg
from attestation.engine.tpm.credential import ek_public_of
from attestation.engine.tpm.endorsement import EKU_ENDORSEMENT
from attestation.engine.tpm.pcrs import initial_value
from tests.attestation.recorded import entries
from tests.attestation.signer import SoftwareTpm
from tests.attestation.wire import quote_text

_GRUB_PCR, _IPL = 8, 0x0D
_BINDING_PCR = 16


@dataclass(frozen=True)
class Boot:
    """A log and what it gives. `answer` is what is the same in every answer."""

    values: dict[int, bytes]
    answer: dict[str, object]


def boots(count: int) -> list[Boot]:
    """The recorded boot, and `count` - 1 more: GRUB runs one command more in each, so that log and PCR 8 differ."""
    entry = next(each for each in entries() if each.name == "a-secureboot-on/eventlog.bin")
    log, values = entry.read(entry.name), dict(entry.pcrs[HashAlg.SHA256])
    found = []
    for number in range(count):
        its_log, its_values = log, dict(values)
        if number:
            text = b"set boot_number=%d" % number
            data = b"grub_cmd: " + text + b"\0"
            event = _GRUB_PCR.to_bytes(4, "little") + _IPL.to_bytes(4, "little") + (2).to_bytes(4, "little")
            for bank in (HashAlg.SHA1, HashAlg.SHA256):
                event += bank.to_bytes(2, "little") + bank.digest(text)
            its_log += event + len(data).to_bytes(4, "little") + data
            its_values[_GRUB_PCR] = HashAlg.SHA256.digest(its_values[_GRUB_PCR] + HashAlg.SHA256.digest(text))
        line, its_values[IMA_PCR] = _aggregate(its_values)
        answer: dict[str, object] = {
            "mb_measurement_list": base64.b64encode(its_log).decode(), "ima_measurement_list": line,
        }  # fmt: skip
        found.append(Boot(its_values, answer))
    return found


def _aggregate(values: dict[int, bytes]) -> tuple[str, bytes]:
    """The first and here only line of an IMA list (ima-ng), which ties it to the boot, and what it makes of PCR 10."""
    digest = HashAlg.SHA256.digest(b"".join(values[pcr] for pcr in range(10)))
    fields = (b"sha256:\0" + digest, b"boot_aggregate\0")
    template = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    line = f"{IMA_PCR} {HashAlg.SHA1.digest(template).hex()} ima-ng sha256:{digest.hex()} boot_aggregate\n"
    return line, HashAlg.SHA256.digest(bytes(32) + HashAlg.SHA256.digest(template))


class Authority:
    """A TPM maker."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Simulated TPM CA")])
        self.certificate = self._signed(self._name, self._key.public_key(), x509.BasicConstraints(True, 0))

    def endorsed(self, key: ec.EllipticCurvePublicKey, name: str) -> x509.Certificate:
        return self._signed(_name(name), key, x509.ExtendedKeyUsage([EKU_ENDORSEMENT]))

    def _signed(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        made = _builder(name, self._name, key)
        return made.add_extension(extension, critical=True).sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key)
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


class Agent:
    """One host with its agent."""

    def __init__(self, name: str, boot: Boot, maker: Authority) -> None:
        self.name, self._boot, self._tpm, self._clock = name, boot, SoftwareTpm(), 1_000
        self._tls_key = ec.generate_private_key(ec.SECP256R1())
        public = self._tls_key.public_key()
        self._certificate = _builder(_name(name), _name(name), public).sign(self._tls_key, hashes.SHA256())
        ek = ec.generate_private_key(ec.SECP256R1()).public_key()
        self._ek, self._ek_certificate = ek_public_of(ek), maker.endorsed(ek, name)

    def context(self, client_ca: Path, folder: Path) -> ssl.SSLContext:
        private = self._tls_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = folder / "agent.pem"
        file.write_bytes(_pem(self._certificate).encode() + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def registered(self, port: int) -> dict[str, object]:
        """What the console knows of it."""
        return {
            "agent_id": self.name, "contact_port": port, "ek_public": self._ek.raw.hex(),
            "ek_name": self._ek.name.hex(), "ek_certificate_pem": _pem(self._ek_certificate),
            "ak_public": self._tpm.ak_area.hex(), "ak_name": self._tpm.ak.name.hex(),
            "mtls_certificate_pem": _pem(self._certificate),
        }  # fmt: skip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            query = parse_qs(urlsplit(head.split(b" ", 2)[1].decode()).query)
            body = json.dumps({"code": 200, "status": "Success", "results": self._answer(query)}).encode()
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)
            await writer.drain()
        finally:
            writer.close()

    def _answer(self, query: dict[str, list[str]]) -> dict[str, object]:
        mask, first_line = int(query["mask"][0], 16) | 1 << _BINDING_PCR, int(query["ima_ml_entry"][0])
        sha256, held = HashAlg.SHA256, self._boot.values
        quoted = {sha256: {pcr: held.get(pcr, initial_value(sha256, pcr)) for pcr in range(24) if mask >> pcr & 1}}
        self._clock += 1
        attest, signature = self._tpm.attest(quoted, nonce=query["nonce"][0].encode(), clock=self._clock)
        sent = dict(self._boot.answer)
        if first_line:
            sent["ima_measurement_list"] = ""
        return {
            **sent, "quote": quote_text(attest, signature, quoted), "hash_alg": "sha256", "sign_alg": "ecdsa",
            "ima_measurement_list_entry": first_line,
        }  # fmt: skip


async def _serve(count: int, kinds: int, client_ca: Path) -> None:
    maker, known = Authority(), boots(kinds)
    registered = []
    with TemporaryDirectory() as folder:
        for number in range(count):
            agent = Agent(f"simulated-{number:04d}", known[number % kinds], maker)
            context = agent.context(client_ca, Path(folder))
            server = await asyncio.start_server(agent.serve, "127.0.0.1", 0, ssl=context, backlog=8)
            registered.append(agent.registered(server.sockets[0].getsockname()[1]))
    print(json.dumps({"maker": _pem(maker.certificate), "agents": registered}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--boots", type=int, default=1)
    parser.add_argument("--client-ca", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.agents, options.boots, options.client_ca))


if __name__ == "__main__":
    main()
