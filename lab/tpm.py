"""The TPM of a lab host: an swtpm whose endorsement key a CA of the lab has certified, as a maker does."""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.agent.bartizan_agent import PASSWORD, Tpm, TpmError
from lab.errors import LabError
from lab.user import PATH, LabUser

START_SECONDS = 20.0
# swtpm writes its state at once, so that it may be killed; a clean end is one that the TPM was told of.
STOP_SECONDS = 10.0
_SHUTDOWN, _LOCK_RESET, _LOCKOUT = 0x145, 0x139, 0x4000000A


@dataclass(frozen=True, slots=True)
class TpmAuthority:
    """A CA for endorsement keys, in a folder of the lab's user. Made by swtpm's own tool at the first certificate."""

    folder: Path
    user: LabUser

    @property
    def certificate(self) -> Path:
        """Of the CA that signs, in PEM: the trust anchor. All such CAs have the same name, so only the key tells."""
        return self.folder / "issuercert.pem"

    def prepare(self) -> Path:
        """Write what swtpm_setup has to be told; the path of that file."""
        tool = shutil.which("swtpm_localca", path=PATH)
        if tool is None:
            raise LabError("there is no swtpm_localca: install the Debian package swtpm-tools")
        self.user.folder(self.folder)
        names = {"statedir": "", "signingkey": "/signkey.pem", "issuercert": "/issuercert.pem", "certserial": "/serial"}
        settings = "".join(f"{name}={self.folder}{tail}\n" for name, tail in names.items())
        self.user.write(self.folder / "localca.conf", settings)
        options = "--platform-manufacturer Bartizan\n--platform-version 1\n--platform-model Lab\n"
        self.user.write(self.folder / "localca.options", options)
        setup = self.folder / "setup.conf"
        self.user.write(
            setup,
            f"create_certs_tool={tool}\ncreate_certs_tool_config={self.folder}/localca.conf\n"
            f"create_certs_tool_options={self.folder}/localca.options\n",
        )
        return setup

    def manufacture(self, state: Path, name: str) -> None:
        """A new TPM with its state in `state`, unless there is one already."""
        if (state / "tpm2-00.permall").exists():
            return
        setup = self.prepare()
        self.user.folder(state)
        argv = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--config", str(setup), "--create-ek-cert"]
        done = self.user.run([*argv, "--lock-nvram", "--pcr-banks", "sha256", "--vmid", name])
        if done.returncode != 0:
            raise LabError(f"swtpm_setup cannot make a TPM for {name}: {(done.stderr or done.stdout).strip()[-500:]}")


class PoweredTpm:
    """Context manager: the machine is switched on. The TPM has had TPM2_Startup(CLEAR), and its PCRs are at zero."""

    def __init__(self, state: Path, socket: Path, user: LabUser) -> None:
        self._state, self._socket, self._user = state, socket, user
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Tpm:
        self._socket.unlink(missing_ok=True)
        argv = [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}",
            "--server", f"type=unixio,path={self._socket}", "--flags", "not-need-init,startup-clear",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            self._user.command(argv, dies_with_caller=True), env={"PATH": PATH}, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            tpm = self._connect()
            # A power cut looks like somebody guessing passwords, and too many of them lock the keys.
            tpm.run(_LOCK_RESET, (_LOCKOUT,), PASSWORD)
        except BaseException:
            self._end()
            raise
        return tpm

    def __exit__(self, *_: object) -> None:
        # Told beforehand, the TPM's clock goes on from where it was; else it says that it may have lost some.
        try:
            tpm = self._connect()
            tpm.run(_SHUTDOWN, parameters=b"\0\0")
            tpm.close()
        except (OSError, LabError, TpmError):
            pass  # it has gone already; then that was a power cut
        self._end()

    def _connect(self) -> Tpm:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return Tpm(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"swtpm does not start in {self._state}") from None
                time.sleep(0.02)

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def extend(tpm: Tpm, pcr: int, digest: bytes) -> None:
    """TPM2_PCR_Extend in the SHA-256 bank."""
    tpm.run(0x182, (pcr,), PASSWORD, bytes.fromhex("00000001000b") + digest)


def read(tpm: Tpm, pcrs: Sequence[int]) -> list[bytes]:
    return tpm.read_pcrs(list(pcrs))
