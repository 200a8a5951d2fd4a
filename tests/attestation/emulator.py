"""A TPM 2.0 emulator (swtpm) with an EK certificate authority of its own, and the few raw commands the tests need.

Commands as in the TPM 2.0 Library, part 3. Written here by hand, so that what the engine builds is judged by a TPM and
not by the engine's own idea of the structures.
"""

import shutil
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ENDORSEMENT = 0x4000000B
_PASSWORD = bytes.fromhex("40000009 0000 00 0000")
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_START_SECONDS = 20
# TPM_RC_RETRY: it tests an algorithm at its first use, and wants the command again.
_RETRY, _ATTEMPTS = 0x922, 10


class TpmError(Exception):
    """The TPM's answer is not success."""

    def __init__(self, code: int) -> None:
        super().__init__(f"response code 0x{code:x}")
        self.code = code


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def take_sized(data: bytes) -> tuple[bytes, bytes]:
    """The content of a TPM2B at the start, and what comes after it."""
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


@dataclass(frozen=True)
class Key:
    """A loaded primary key: its handle, and its TPMT_PUBLIC."""

    handle: int
    public: bytes


class Emulator:
    """One swtpm process with a state of its own; stopped, with its files, at the end of the `with` block."""

    def __init__(self, *setup_options: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bartizan-tpm-"))
        self._options = setup_options
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        try:
            self._manufacture()
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def _manufacture(self) -> None:
        authority, certificates, state = (self._folder / name for name in ("ca", "certificates", "state"))
        for folder in (authority, certificates, state):
            folder.mkdir()
        names = {"statedir": "", "signingkey": "/signkey.pem", "issuercert": "/issuercert.pem", "certserial": "/serial"}
        (authority / "localca.conf").write_text("".join(f"{name}={authority}{end}\n" for name, end in names.items()))
        (authority / "options").write_text("")
        tool = shutil.which("swtpm_localca")
        (authority / "setup.conf").write_text(
            f"create_certs_tool={tool}\ncreate_certs_tool_config={authority}/localca.conf\n"
            f"create_certs_tool_options={authority}/options\n"
        )
        command = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--config", str(authority / "setup.conf")]
        command += ["--create-ek-cert", "--write-ek-cert-files", str(certificates), "--pcr-banks", "sha256,sha384"]
        subprocess.run([*command, *self._options], check=True, capture_output=True)

    @property
    def ek_certificates(self) -> list[bytes]:
        """In DER, as they stand in the TPM's NV."""
        return [path.read_bytes() for path in sorted((self._folder / "certificates").iterdir())]

    @property
    def authority(self) -> tuple[bytes, bytes]:
        """The CA's root and its intermediate, in PEM."""
        folder = self._folder / "ca"
        return (folder / "swtpm-localca-rootca-cert.pem").read_bytes(), (folder / "issuercert.pem").read_bytes()

    def _start(self) -> None:
        path = self._folder / "socket"
        self._process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self._folder / 'state'}",
                "--server",
                f"type=unixio,path={path}",
                "--flags",
                "not-need-init,startup-clear",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + _START_SECONDS
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                self._socket.connect(str(path))
                return
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError("swtpm did not start")
            time.sleep(0.02)

    def _stop(self) -> None:
        self._socket.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, code: int, handles: list[int], sessions: bytes, parameters: bytes) -> bytes:
        """Send one command; return the answer behind its header."""
        body = b"".join(handle.to_bytes(4, "big") for handle in handles)
        body += (len(sessions).to_bytes(4, "big") + sessions if sessions else b"") + parameters
        tag = _SESSIONS if sessions else _NO_SESSIONS
        for _ in range(_ATTEMPTS):
            self._socket.sendall(struct.pack(">HII", tag, 10 + len(body), code) + body)
            answer = b""
            while len(answer) < 10 or len(answer) < int.from_bytes(answer[2:6], "big"):
                received = self._socket.recv(4096)
                if not received:
                    raise RuntimeError("swtpm has gone")
                answer += received
            result = int.from_bytes(answer[6:10], "big")
            if not result:
                return answer[10:]
            if result != _RETRY:
                raise TpmError(result)
        raise TpmError(_RETRY)

    def create_primary(self, template: bytes, hierarchy: int = ENDORSEMENT) -> Key:
        """TPM2_CreatePrimary with an empty password; `template` is a TPMT_PUBLIC."""
        sensitive = sized(sized(b"") + sized(b""))
        answer = self._run(0x131, [hierarchy], _PASSWORD, sensitive + sized(template) + sized(b"") + bytes(4))
        public, _ = take_sized(answer[8:])
        return Key(int.from_bytes(answer[:4], "big"), public)

    def flush(self, handle: int) -> None:
        """TPM2_FlushContext; its handle is a parameter."""
        self._run(0x165, [], b"", handle.to_bytes(4, "big"))

    def extend(self, pcr: int, alg: int, digest: bytes) -> None:
        """TPM2_PCR_Extend in one bank."""
        self._run(0x182, [pcr], _PASSWORD, struct.pack(">IH", 1, alg) + digest)

    def quote(self, key: Key, nonce: bytes, selection: bytes) -> tuple[bytes, bytes]:
        """TPM2_Quote by the key's own scheme: TPMS_ATTEST and TPMT_SIGNATURE. `selection`: a TPML_PCR_SELECTION."""
        answer = self._run(0x158, [key.handle], _PASSWORD, sized(nonce) + b"\x00\x10" + selection)
        size = int.from_bytes(answer[:4], "big")
        attest, rest = take_sized(answer[4 : 4 + size])
        # What is left is the signature: nothing else is returned.
        return attest, rest

    def activate(self, ak: Key, ek: Key, blob: bytes, *, by_policy: bool) -> bytes:
        """TPM2_ActivateCredential on tpm2-tools' container: the secret, or TpmError when it is not for these keys.

        `by_policy`: the EK asks for PolicySecret(endorsement), as the low templates do; the high ones take a password.
        """
        if not by_policy:
            return self._activate(ak, ek, _PASSWORD, blob)
        session = self._policy_session()
        try:
            self._run(0x151, [ENDORSEMENT, session], _PASSWORD, sized(b"") * 3 + bytes(4))
            return self._activate(ak, ek, struct.pack(">IHBH", session, 0, 1, 0), blob)
        finally:
            self.flush(session)

    def _activate(self, ak: Key, ek: Key, authorization: bytes, blob: bytes) -> bytes:
        answer = self._run(0x147, [ak.handle, ek.handle], _PASSWORD + authorization, blob[8:])
        secret, _ = take_sized(answer[4:])
        return secret

    def _policy_session(self) -> int:
        null, policy, sha256 = 0x40000007, 1, 0x000B
        parameters = sized(bytes(16)) + sized(b"") + struct.pack(">BHH", policy, 0x0010, sha256)
        return int.from_bytes(self._run(0x176, [null, null], b"", parameters)[:4], "big")
