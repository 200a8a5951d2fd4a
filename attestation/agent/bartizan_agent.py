#!/usr/bin/env python3
"""Attestation agent of a host, for consoles that speak Keylime's agent API 2.x. One file; nothing else of Bartizan.

It needs Python 3.11, Debian's python3-cryptography, and a TPM 2.0. At its start it

1. makes an attestation key in the TPM (a primary key: the same one as long as the TPM is), and, once, a TLS key;
2. listens, and answers only clients with a certificate of `trusted_client_ca`;
3. registers with the console, and answers the challenge to the TPM (TPM2_ActivateCredential).

Then it is asked for quotes, with the boot log and the IMA list. It does nothing else: it runs nothing, writes no file
but that of its TLS key, and takes no settings from the network. It needs rights on the TPM and to read the two lists,
and none besides. What it says is believed as far as the TPM signs it, so an agent that lies, or is broken into, cannot
make a boot look better.
"""

import argparse
import asyncio
import base64
import configparser
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import os
import random
import re
import signal
import socket
import ssl
import stat
import struct
import sys
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

log = logging.getLogger("bartizan-agent")

API_VERSION = "2.1"
DEFAULT_SETTINGS = Path("/etc/bartizan-agent.conf")
REQUEST_SECONDS, HANDSHAKE_SECONDS, SEND_SECONDS, REGISTRAR_SECONDS = 10.0, 10.0, 60.0, 30.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 300.0
MAX_HEAD_BYTES = 4096
MAX_CONNECTIONS = 512
MAX_LIST_BYTES = 64 << 20
CERTIFICATE_DAYS = 5 * 365

# TPM 2.0 Library, part 2: tags, handles, algorithms, response codes.
NO_SESSIONS, SESSIONS = 0x8001, 0x8002
ENDORSEMENT, NULL_HANDLE, PASSWORD_SESSION = 0x4000000B, 0x40000007, 0x40000009
RSA, ECC, SHA256, ALG_NULL = 0x0001, 0x0023, 0x000B, 0x0010
PASSWORD = struct.pack(">IHBH", PASSWORD_SESSION, 0, 0, 0)
# Warnings after which the same command is sent again: TPM_RC_YIELDED, TESTING, RETRY.
AGAIN = frozenset({0x908, 0x90A, 0x922})
# TCG EK Credential Profile, annex B: templates L-1 and L-2, and where their certificates are kept.
_EK_HEAD = bytes.fromhex(
    "000300b2 0020 837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa 0006 0080 0043"
)
EK_RSA = bytes.fromhex("0001 000b") + _EK_HEAD + bytes.fromhex("0010 0800 00000000 0100") + bytes(256)
EK_ECC = bytes.fromhex("0023 000b") + _EK_HEAD + bytes.fromhex("0010 0003 0010") + 2 * (b"\0\x20" + bytes(32))
EK_CERTIFICATES = ((0x01C00002, EK_RSA), (0x01C0000A, EK_ECC))
# Restricted signing key on P-256 by ECDSA with SHA-256, made by the TPM and fixed to it.
AK = bytes.fromhex("0023 000b 00050072 0000 0010 0018 000b 0003 0010 0000 0000")
# PCR 16 is for debugging, and anybody may reset it: it says something inside a quote only.
BINDING_PCR = 16


class AgentError(Exception):
    """The agent cannot do what it should; the text is for its log."""


class TpmError(AgentError):
    """The TPM's answer is not success."""

    def __init__(self, command: int, code: int) -> None:
        super().__init__(f"the TPM answers command 0x{command:x} with 0x{code:x}")
        self.code = code


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return len(data).to_bytes(2, "big") + data


def take_sized(data: bytes) -> tuple[bytes, bytes]:
    """The content of a TPM2B at the start, and what comes after it."""
    size = int.from_bytes(data[:2], "big")
    if len(data) < 2 + size:
        raise AgentError("the TPM's answer is too short")
    return data[2 : 2 + size], data[2 + size :]


@dataclass(frozen=True)
class Key:
    """A key that is loaded in the TPM; `public` is its TPMT_PUBLIC."""

    handle: int
    public: bytes

    @property
    def name(self) -> bytes:
        return SHA256.to_bytes(2, "big") + hashlib.sha256(self.public).digest()


class Tpm:
    """Commands to a TPM at `path`: a device, or the socket of an emulator that nobody else uses."""

    def __init__(self, path: str) -> None:
        """Raises OSError where it cannot be opened."""
        self._socket: socket.socket | None = None
        self._device = -1
        if stat.S_ISSOCK(os.stat(path).st_mode):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(120)
            self._socket.connect(path)
            self._flush_all()
        else:
            self._device = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def run(self, code: int, handles: tuple[int, ...] = (), sessions: bytes = b"", parameters: bytes = b"") -> bytes:
        """Sends one command; returns the answer behind its header. Raises TpmError."""
        body = b"".join(handle.to_bytes(4, "big") for handle in handles)
        body += (len(sessions).to_bytes(4, "big") + sessions if sessions else b"") + parameters
        command = struct.pack(">HII", SESSIONS if sessions else NO_SESSIONS, 10 + len(body), code) + body
        result = 0
        for attempt in range(20):
            answer = self._exchange(command)
            result = int.from_bytes(answer[6:10], "big")
            if not result:
                return answer[10:]
            if result not in AGAIN:
                break
            time.sleep(0.05 * attempt)
        raise TpmError(code, result)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._device)

    def _exchange(self, command: bytes) -> bytes:
        if self._socket is None:
            os.write(self._device, command)
            answer = os.read(self._device, 4096)
        else:
            self._socket.sendall(command)
            answer = b""
            while len(answer) < 10 or len(answer) < int.from_bytes(answer[2:6], "big"):
                received = self._socket.recv(4096)
                if not received:
                    raise AgentError("the TPM has gone")
                answer += received
        if len(answer) < 10 or len(answer) != int.from_bytes(answer[2:6], "big"):
            raise AgentError("the TPM's answer is cut")
        return answer

    def _flush_all(self) -> None:
        """Keys and sessions that an agent before left. The kernel does that where it manages the TPM (/dev/tpmrm0)."""
        for first in (0x80000000, 0x02000000, 0x03000000):
            answer = self.run(0x17A, parameters=struct.pack(">III", 1, first, 64))  # TPM2_GetCapability: handles
            for (handle,) in struct.iter_unpack(">I", answer[9:]):
                self.flush(handle)

    def flush(self, handle: int) -> None:
        self.run(0x165, parameters=handle.to_bytes(4, "big"))

    def create_primary(self, template: bytes) -> Key:
        """A key of the endorsement hierarchy; the same template gives the same key."""
        parameters = sized(sized(b"") + sized(b"")) + sized(template) + sized(b"") + bytes(4)
        answer = self.run(0x131, (ENDORSEMENT,), PASSWORD, parameters)
        public, _ = take_sized(answer[8:])
        return Key(int.from_bytes(answer[:4], "big"), public)

    def read_nv(self, index: int) -> bytes | None:
        """The content of an NV index that is readable with its empty password; None where there is none."""
        try:
            public, _ = take_sized(self.run(0x169, (index,)))
        except TpmError:
            return None
        size, content = int.from_bytes(public[-2:], "big"), b""
        while len(content) < size:
            part = struct.pack(">HH", min(512, size - len(content)), len(content))
            piece, _ = take_sized(self.run(0x14E, (index, index), PASSWORD, part)[4:])
            if not piece:
                raise AgentError(f"NV index 0x{index:x} cannot be read to its end")
            content += piece
        return content

    def activate(self, ak: Key, ek: Key, blob: bytes) -> bytes:
        """TPM2_ActivateCredential; the EK asks for PolicySecret(endorsement)."""
        nonce = sized(os.urandom(16)) + sized(b"") + struct.pack(">BHH", 1, ALG_NULL, SHA256)
        session = int.from_bytes(self.run(0x176, (NULL_HANDLE, NULL_HANDLE), parameters=nonce)[:4], "big")
        try:
            self.run(0x151, (ENDORSEMENT, session), PASSWORD, sized(b"") * 3 + bytes(4))
            authorization = PASSWORD + struct.pack(">IHBH", session, 0, 1, 0)
            secret, _ = take_sized(self.run(0x147, (ak.handle, ek.handle), authorization, blob)[4:])
            return secret
        finally:
            self.flush(session)

    def bind(self, digest: bytes) -> None:
        """PCR 16 := H(0 | digest), for the next quote."""
        self.run(0x13D, (BINDING_PCR,), PASSWORD)
        self.run(0x182, (BINDING_PCR,), PASSWORD, struct.pack(">IH", 1, SHA256) + digest)

    def read_pcrs(self, pcrs: list[int]) -> list[bytes]:
        """Values of the SHA-256 bank. Raises AgentError where it is not active."""
        values: dict[int, bytes] = {}
        while left := [pcr for pcr in pcrs if pcr not in values]:
            answer = self.run(0x17E, parameters=selection(left))
            got = [pcr for pcr in left if int.from_bytes(answer[11:14], "little") >> pcr & 1]
            rest = answer[18:]
            for pcr in got:
                values[pcr], rest = take_sized(rest)
            if not got:
                raise AgentError("the TPM's SHA-256 bank is not active")
        return [values[pcr] for pcr in pcrs]

    def quote(self, key: Key, nonce: bytes, pcrs: list[int]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE, by the key's own scheme."""
        parameters = sized(nonce) + ALG_NULL.to_bytes(2, "big") + selection(pcrs)
        answer = self.run(0x158, (key.handle,), PASSWORD, parameters)
        size = int.from_bytes(answer[:4], "big")
        attest, signature = take_sized(answer[4 : 4 + size])
        return attest, signature


def selection(pcrs: list[int]) -> bytes:
    """TPML_PCR_SELECTION over the SHA-256 bank."""
    return struct.pack(">IHB", 1, SHA256, 3) + sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")


def dumped(pcrs: list[int], values: list[bytes]) -> bytes:
    """PCR values as tpm2-tools dumps them: C structures, little-endian."""
    bitmap = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    out = (struct.pack("<IHB", 1, SHA256, 3) + bitmap + b"\0\0").ljust(132, b"\0")
    lists = [values[start : start + 8] for start in range(0, len(values), 8)]
    out += struct.pack("<I", len(lists))
    for each in lists:
        filled = b"".join(struct.pack("<H", len(value)) + value.ljust(64, b"\0") for value in each)
        out += struct.pack("<I", len(each)) + filled.ljust(528, b"\0")
    return out


@dataclass(frozen=True)
class Settings:
    """The file's section [agent]; see bartizan-agent.conf."""

    agent_id: str
    registrar: tuple[str, int]
    contact_host: str
    listen: tuple[str, int]
    trusted_client_ca: Path
    state: Path
    tpm: str
    event_log: Path
    ima_log: Path


def read_settings(path: Path) -> Settings:
    """Raises AgentError for what is missing or wrong, naming the setting."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
        section = parser["agent"]
        agent_id = section.get("id", "hash_ek")
        found = Settings(
            agent_id=agent_id,
            registrar=_address("registrar", section["registrar"], 8890),
            contact_host=section.get("contact_host", ""),
            listen=_address("listen", section.get("listen", "0.0.0.0:9002"), 9002),
            trusted_client_ca=Path(section["trusted_client_ca"]),
            state=Path(section.get("state", "/var/lib/bartizan-agent")),
            tpm=section.get("tpm", "/dev/tpmrm0"),
            event_log=Path(section.get("event_log", "/sys/kernel/security/tpm0/binary_bios_measurements")),
            ima_log=Path(section.get("ima_log", "/sys/kernel/security/ima/ascii_runtime_measurements")),
        )
    except (OSError, UnicodeError, configparser.Error) as exc:
        raise AgentError(f"{path} cannot be read: {exc}") from exc
    except KeyError as exc:
        raise AgentError(f"{path}: {exc} is missing") from exc
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", agent_id) is None:
        raise AgentError(f"{path}: id is letters, digits, _ . and -, at most 128")
    return found


def _address(name: str, text: str, port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::([0-9]{1,5}))?", text.strip())
    if match is None or not 0 <= int(match[3] or port) <= 65535:
        raise AgentError(f"{name}: {text!r} is not HOST:PORT")
    return match[1] or match[2], int(match[3] or port)


@dataclass(frozen=True)
class Identity:
    """Who the agent is. `transport_key`: the public part of the TLS key, in PEM."""

    agent_id: str
    ek: Key
    ek_certificate: bytes | None
    ak: Key
    tls_certificate: str
    transport_key: str


def make_identity(tpm: Tpm, settings: Settings) -> Identity:
    certificate, ek = _endorsement(tpm)
    agent_id = hash_of_ek(ek.public) if settings.agent_id == "hash_ek" else settings.agent_id
    pem = tls_key_file(settings).read_bytes()
    certificate_of_agent = x509.load_pem_x509_certificate(pem)
    transport_key = certificate_of_agent.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Identity(
        agent_id, ek, certificate, tpm.create_primary(AK),
        certificate_of_agent.public_bytes(serialization.Encoding.PEM).decode(), transport_key.decode(),
    )  # fmt: skip


def tls_key_file(settings: Settings) -> Path:
    """TLS key and self-signed certificate, made where there are none, and in time before they end. Mode 0600."""
    path = settings.state / "tls.pem"
    try:
        if time.time() - path.stat().st_mtime < (CERTIFICATE_DAYS - 60) * 86400:
            return path
    except FileNotFoundError:
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private + _self_signed(key).encode())
    unfinished.replace(path)
    return path


def _endorsement(tpm: Tpm) -> tuple[bytes | None, Key]:
    """The EK that has a certificate in NV, else the RSA one without."""
    for index, template in EK_CERTIFICATES:
        content = tpm.read_nv(index)
        if content is not None and content[:2] == b"\x30\x82":
            # The index may be larger than its certificate.
            return content[: 4 + int.from_bytes(content[2:4], "big")], tpm.create_primary(template)
    return None, tpm.create_primary(EK_RSA)


def hash_of_ek(public: bytes) -> str:
    """Keylime's `hash_ek`: SHA-256 of the key in PEM."""
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    if public[:2] == RSA.to_bytes(2, "big"):
        key = rsa.RSAPublicNumbers(65537, int.from_bytes(public[-256:], "big")).public_key()
    else:
        x, rest = take_sized(public[-68:])
        y, _ = take_sized(rest)
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        key = numbers.public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _self_signed(key: ec.EllipticCurvePrivateKey) -> str:
    """Nobody looks at its names: consoles pin the whole certificate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bartizan-agent")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def server_context(settings: Settings) -> ssl.SSLContext:
    """TLS in which only clients of the trusted CA get through. Raises OSError, ssl.SSLError for an unusable file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(settings.trusted_client_ca)
    context.load_cert_chain(tls_key_file(settings), password=b"")
    return context


# --- quotes


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    results: dict[str, object] = field(default_factory=dict)


NOT_FOUND = Answer(404, "there is no such thing here")


class Attester:
    """Answers what a verifier may ask. One thread at a time: a TPM does one thing after the other."""

    def __init__(self, tpm: Tpm, identity: Identity, settings: Settings) -> None:
        self._tpm, self._identity, self._settings = tpm, identity, settings
        self._boottime = int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))

    def answer(self, path: str) -> Answer:
        """GET of a path with its query."""
        place, _, query = path.partition("?")
        if place == "/version":
            return Answer(200, "Success", {"supported_version": API_VERSION})
        match = re.fullmatch(r"/v2\.[0-9]/(quotes/identity|quotes/integrity|keys/pubkey)/?", place)
        if match is None:
            return NOT_FOUND
        if match[1] == "keys/pubkey":
            return Answer(200, "Success", {"pubkey": self._identity.transport_key})
        try:
            asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=8))
        except ValueError:
            return Answer(400, "too many parameters")
        nonce, partial = asked.get("nonce", ""), asked.get("partial", "0")
        mask, first_line = asked.get("mask", "0x0"), asked.get("ima_ml_entry", "0")
        if re.fullmatch("[A-Za-z0-9]{1,64}", nonce) is None:
            return Answer(400, "nonce is 1 to 64 letters and digits")
        if re.fullmatch("0[xX][0-9a-fA-F]{1,6}", mask) is None or partial not in ("0", "1"):
            return Answer(400, "mask is 0x and up to 6 hexadecimal digits, partial is 0 or 1")
        if re.fullmatch("[0-9]{1,9}", first_line) is None:
            return Answer(400, "ima_ml_entry is the number of a line")
        wanted = int(mask, 16) if match[1] == "quotes/integrity" else 0
        results = self._quote(nonce.encode("ascii"), wanted)
        if partial == "0":
            results["pubkey"] = self._identity.transport_key
        if match[1] == "quotes/integrity":
            self._add_lists(results, wanted, int(first_line))
        return Answer(200, "Success", results)

    def _quote(self, nonce: bytes, mask: int) -> dict[str, object]:
        pcrs = [pcr for pcr in range(24) if (mask | 1 << BINDING_PCR) >> pcr & 1]
        self._tpm.bind(hashlib.sha256(self._identity.transport_key.encode("ascii")).digest())
        # Between quote and reading another line may be measured into PCR 10: then once more.
        for _ in range(5):
            attest, signature = self._tpm.quote(self._identity.ak, nonce, pcrs)
            values = self._tpm.read_pcrs(pcrs)
            if attest.endswith(hashlib.sha256(b"".join(values)).digest()):
                return self._told(pcrs, attest, signature, values)
        raise AgentError("the PCRs change faster than they can be quoted")

    def _told(self, pcrs: list[int], attest: bytes, signature: bytes, values: list[bytes]) -> dict[str, object]:
        parts = (base64.b64encode(part).decode() for part in (attest, signature, dumped(pcrs, values)))
        return {
            "quote": "r" + ":".join(parts),
            "hash_alg": "sha256",
            "enc_alg": "ecc",
            "sign_alg": "ecdsa",
            "boottime": self._boottime,
        }

    def _add_lists(self, results: dict[str, object], mask: int, first_line: int) -> None:
        if mask & 1 and (content := _read(self._settings.event_log)):
            results["mb_measurement_list"] = base64.b64encode(content).decode()
        # Read after the quote, so that the list has at least the lines that are in PCR 10.
        if mask >> 10 & 1 and (content := _read(self._settings.ima_log)):
            lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True)
            start = first_line if first_line <= len(lines) else 0
            text = "".join(lines[start:]).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            results["ima_measurement_list"], results["ima_measurement_list_entry"] = text, start


def _read(path: Path) -> bytes:
    """The whole file, whose size securityfs gives as 0; empty where it is missing."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_LIST_BYTES)
    except FileNotFoundError:
        return b""


# --- the listener


class SecureStream:
    """TLS over a connection, by hand: asyncio's own drops the alert that tells a client why it was refused."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Raises ssl.SSLError where the client is not one of the console's, EOFError where it goes."""
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            finally:
                await self._flush()

    async def read_head(self) -> bytes:
        """Up to the empty line. Raises EOFError where it does not come, or is too long."""
        head = b""
        while b"\r\n\r\n" not in head:
            try:
                part = self._tls.read(MAX_HEAD_BYTES)
            except ssl.SSLWantReadError:
                await self._receive()
                continue
            head += part
            if not part or len(head) > MAX_HEAD_BYTES:
                raise EOFError
        return head

    async def send(self, data: bytes) -> None:
        """All of it, and the end of the connection."""
        for start in range(0, len(data), 1 << 16):
            self._tls.write(data[start : start + (1 << 16)])
            await self._flush()
        # The client's farewell is not waited for: it has all it wanted.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()

    async def _receive(self) -> None:
        data = await self._reader.read(1 << 14)
        if not data:
            raise EOFError
        self._incoming.write(data)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())
            await self._writer.drain()


class Listener:
    """As much HTTP as verifiers speak, one request a connection. A client that stalls costs a coroutine."""

    def __init__(self, attester: Attester, context: ssl.SSLContext) -> None:
        self._attester, self._context = attester, context
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tpm")
        self._connections = 0

    async def listen(self, address: tuple[str, int]) -> asyncio.Server:
        return await asyncio.start_server(self._serve, *address)

    async def in_tpm_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                await self._answer_one(SecureStream(reader, writer, self._context))
        except (OSError, EOFError, TimeoutError) as exc:
            log.info("a client is not answered: %s %s", type(exc).__name__, exc)
        finally:
            self._connections -= 1
            writer.close()

    async def _answer_one(self, stream: SecureStream) -> None:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            await stream.handshake()
        async with asyncio.timeout(REQUEST_SECONDS):
            head = await stream.read_head()
        match = re.match(rb"(?P<method>[A-Z]{1,10}) (?P<path>/[!-~]{0,2000}) HTTP/1\.[01]\r\n", head)
        if match is None:
            answer = Answer(400, "malformed request line")
        elif match["method"] != b"GET":
            answer = Answer(405, "only GET")
        else:
            path = match["path"].decode("ascii")
            try:
                answer = await self.in_tpm_thread(lambda: self._attester.answer(path))
            except (AgentError, OSError) as exc:
                log.error("cannot answer: %s", exc)
                answer = Answer(500, "the TPM or a list cannot be read; see the agent's log")
        body = json.dumps({"code": answer.status, "status": answer.text, "results": answer.results}).encode()
        lines = [
            f"HTTP/1.0 {answer.status} {HTTPStatus(answer.status).phrase}", "Content-Type: application/json",
            f"Content-Length: {len(body)}", "Connection: close", "", "",
        ]  # fmt: skip
        async with asyncio.timeout(SEND_SECONDS):
            await stream.send("\r\n".join(lines).encode("ascii") + body)


# --- registration


def register(tpm: Tpm, identity: Identity, settings: Settings, port: int) -> None:
    """Registers and answers the challenge. Raises AgentError, OSError, http.client.HTTPException."""
    offer: dict[str, object] = {
        "ekcert": None if identity.ek_certificate is None else base64.b64encode(identity.ek_certificate).decode(),
        "ek_tpm": base64.b64encode(sized(identity.ek.public)).decode(),
        "aik_tpm": base64.b64encode(sized(identity.ak.public)).decode(),
        "mtls_cert": identity.tls_certificate,
        "port": port,
    }
    if settings.contact_host:
        offer["ip"] = settings.contact_host
    path = f"/v{API_VERSION}/agents/{identity.agent_id}"
    blob = base64.b64decode(str(_call(settings.registrar, "POST", path, offer).get("blob", "")), validate=True)
    if blob[:8] != bytes.fromhex("badcc0de00000001"):
        raise AgentError("the registrar's challenge is malformed")
    secret = tpm.activate(identity.ak, identity.ek, blob[8:])
    # Keylime's key is the text of the secret in base64.
    tag = hmac.digest(base64.b64encode(secret), identity.agent_id.encode(), "sha384").hex()
    _call(settings.registrar, "PUT", f"{path}/activate", {"auth_tag": tag})


def _call(address: tuple[str, int], method: str, path: str, body: dict[str, object]) -> dict[str, object]:
    connection = http.client.HTTPConnection(*address, timeout=REGISTRAR_SECONDS)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read(64 << 10))
    except ValueError as exc:
        raise AgentError("the registrar's answer is no JSON") from exc
    finally:
        connection.close()
    if response.status != 200 or not isinstance(answer, dict):
        text = answer.get("status") if isinstance(answer, dict) else ""
        raise AgentError(f"the registrar answers {response.status}: {str(text)[:300]!r}")
    results = answer.get("results")
    return results if isinstance(results, dict) else {}


async def keep_registering(listener: Listener, tpm: Tpm, identity: Identity, settings: Settings, port: int) -> None:
    """Until it has worked once."""
    wait = FIRST_RETRY_SECONDS

    def once() -> Answer:
        register(tpm, identity, settings, port)
        return Answer(200, "registered")

    while True:
        try:
            await listener.in_tpm_thread(once)
            log.info("registered as %s at %s:%d", identity.agent_id, *settings.registrar)
            return
        except (AgentError, OSError, ValueError, http.client.HTTPException) as exc:
            log.warning("not registered: %s; again in about %d s", exc, wait)
        await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311  no secret
        wait = min(2 * wait, LAST_RETRY_SECONDS)


async def serve(settings: Settings) -> None:
    tpm = Tpm(settings.tpm)
    identity = make_identity(tpm, settings)
    listener = Listener(Attester(tpm, identity, settings), server_context(settings))
    server = await listener.listen(settings.listen)
    port = server.sockets[0].getsockname()[1]
    log.info("agent %s listens on %s:%d", identity.agent_id, settings.listen[0], port)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    registering = asyncio.create_task(keep_registering(listener, tpm, identity, settings, port))
    async with server:
        await ended.wait()
        registering.cancel()
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Attestation agent of a host.")
    parser.add_argument("--settings", type=Path, default=DEFAULT_SETTINGS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(read_settings(options.settings)))
    except (AgentError, OSError, ssl.SSLError) as exc:
        log.error("%s", exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
