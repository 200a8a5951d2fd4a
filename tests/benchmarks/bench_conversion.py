"""Speed and memory of disk conversion: the engine, `qemu-img convert -O luks`, and the crypto module's own XTS.

Same file, same run, interleaved, the median of each:
python -m tests.benchmarks.bench_conversion [--mib 512] [--data-every 16] [--folder DIR]

`qemu-img convert -O luks` calibrates and runs PBKDF2 for seconds before it copies, and does not sync. The line "into a
ready header" leaves the first out and adds a flush at its end (`-t writeback`). The engine makes its header in 20 ms,
syncs every 64 MiB and at the end. "cp" with a sync at its end, and `qemu-img convert -O raw`, which does not sync, only
copy: what is left to the storage. CPU is that of all threads and child processes, user and system; writeback by the
kernel's own threads is not in it.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from encryption.engine import luks
from encryption.engine.convert import Conversion, convert
from encryption.engine.image import ImageFile
from encryption.engine.secret import Secret
from encryption.engine.verify import verify
from encryption.engine.xts import SECTOR_BYTES, Xts

MIB = 1 << 20
GIB = 1 << 30
CRYPTO_BYTES = 64 * MIB


class Silent:
    def advance(self, done_bytes: int) -> None:
        pass

    def checkpoint(self, offset: int) -> None:
        pass


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and seconds of CPU that this process and its children used."""
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - start, sum(os.times()[:4]) - cpu


def engine(conversion: Conversion, source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("w+b") as writing:
        convert(conversion, ImageFile(reading), ImageFile(writing), start=None, progress=Silent())


def qemu_img(source: Path, target: Path, key: Path, *extra: str) -> None:
    command = ["qemu-img", "convert", "--object", f"secret,id=s,file={key}", "-f", "raw", *extra]
    subprocess.run([*command, str(source), str(target)], check=True, capture_output=True)


def calibrated(work: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    """Times `qemu-img` where it makes a header. Its calibration gives up on some virtual machines ("Unable to get
    accurate CPU usage"); such a run is not counted."""

    def run() -> tuple[float, float]:
        for _ in range(20):
            try:
                return timed(work)
            except subprocess.CalledProcessError as exc:
                if b"accurate CPU usage" not in exc.stderr:
                    raise
        sys.exit("qemu-img cannot calibrate its key derivation on this machine")

    return run


def qemu_img_into_header(source: Path, target: Path, key: Path, header: bytes) -> None:
    with target.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + source.stat().st_size)
    options = f"driver=luks,key-secret=s,file.filename={target}"
    command = [
        "qemu-img",
        "convert",
        "-n",
        "-t",
        "writeback",
        "--object",
        f"secret,id=s,file={key}",
        "-f",
        "raw",
        str(source),
    ]
    subprocess.run([*command, "--target-image-opts", options], check=True)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=auto", "--reflink=never", str(source), str(target)], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def copy_by_qemu_img(source: Path, target: Path) -> None:
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", str(source), str(target)], check=True)


def whole_units_of_xts(key: Secret, content: bytearray) -> None:
    """The module's XTS at its best: one unit of a mebibyte a call. No disk is laid out so; it is the ceiling."""
    out = bytearray(MIB + 16)
    view = memoryview(content)
    for start in range(0, len(content), MIB):
        encryptor = Cipher(algorithms.AES(key.reveal()), modes.XTS(start.to_bytes(16, "little"))).encryptor()
        encryptor.update_into(view[start : start + MIB], out)


def show(name: str, n_bytes: int, seconds: float, cpu: float) -> None:
    rate, each = n_bytes / MIB / seconds, cpu / (n_bytes / GIB)
    print(f"{name:<58}{seconds:8.2f} s{rate:10.0f} MiB/s{each:8.2f} CPU s/GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=512, help="size of the disk")
    parser.add_argument("--data-every", type=int, default=1, help="of so many MiB one holds data, the rest are holes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the images go (default: the system's temporary folder)")
    arguments = parser.parse_args()
    size = arguments.mib * MIB

    passphrase = Secret(Secret.generate(32).passphrase_text())
    volume_key = Secret.generate(64)
    content = bytearray(AESGCM.generate_key(256) * (CRYPTO_BYTES // 32))
    out = memoryview(bytearray(CRYPTO_BYTES))
    fast, by_sector = Xts(volume_key), Xts(volume_key, per_sector=True)
    # Memory only; first, so that the peak below is not the benchmark's own.
    in_memory: dict[str, Callable[[], object]] = {
        "memory: module's XTS, 1 MiB units (ceiling, not a disk)": lambda: whole_units_of_xts(volume_key, content),
        "memory: module's XTS, one call a sector": lambda: by_sector.encrypt_into(content, out, 0),
        "memory: engine, vectorised": lambda: fast.encrypt_into(content, out, 0),
    }

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        source, target, volume, key = (folder / part for part in ("source.raw", "target", "volume.luks", "key"))
        key.write_bytes(passphrase.reveal())
        with source.open("wb") as file:
            for start in range(0, size, arguments.data_every * MIB):
                file.seek(start)
                file.write(os.urandom(MIB))
            file.truncate(size)
        encrypting, decrypting = Conversion(size, None, passphrase), Conversion(size, passphrase, None)
        header = luks.create(passphrase).header_bytes
        engine(encrypting, source, volume)

        on_files: dict[str, Callable[[], object]] = {
            "qemu-img convert -O luks": lambda: qemu_img(source, target, key, "-O", "luks", "-o", "key-secret=s"),
            "qemu-img convert -n, into a ready header": lambda: qemu_img_into_header(source, target, key, header),
            "engine raw -> luks": lambda: engine(encrypting, source, target),
            "engine luks -> raw": lambda: engine(decrypting, volume, target),
            "cp, synced": lambda: copy(source, target),
            "qemu-img convert -O raw": lambda: copy_by_qemu_img(source, target),
        }
        medians: dict[str, float] = {}
        cpu: dict[str, float] = {}
        for works in (in_memory, on_files):
            found: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
            for _ in range(arguments.rounds):
                for what, work in works.items():
                    target.unlink(missing_ok=True)
                    os.sync()  # what the one before left to write must not slow this one down
                    found[what].append(calibrated(work)())
            medians |= {what: statistics.median(one for one, _ in values) for what, values in found.items()}
            cpu |= {what: statistics.median(one for _, one in values) for what, values in found.items()}
        for what, median in medians.items():
            show(what, CRYPTO_BYTES if what in in_memory else size, median, cpu[what])
        with source.open("rb") as reading, volume.open("rb") as written:
            result = verify(encrypting, ImageFile(reading), ImageFile(written), full=True)
        if result.mismatch is not None:
            sys.exit(f"wrong result: differs at byte {result.mismatch}")

        allocated = {path.name: path.stat().st_blocks * 512 // MIB for path in (source, volume)}

    header_only = medians["qemu-img convert -n, into a ready header"]
    ours = medians["engine raw -> luks"]
    print(f"engine : qemu-img convert -O luks           {medians['qemu-img convert -O luks'] / ours:6.1f} x")
    print(f"engine : qemu-img, ready header             {header_only / ours:6.1f} x")
    print(f"engine : cp of the same file, synced        {medians['cp, synced'] / ours:6.2f} x")
    sectors = medians["memory: module's XTS, one call a sector"] / medians["memory: engine, vectorised"]
    print(f"vectorised : module's XTS by {SECTOR_BYTES}-byte sector   {sectors:6.1f} x (in memory)")
    print(f"on disk: source {allocated['source.raw']} MiB, engine's volume {allocated['volume.luks']} MiB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak memory of this process: {peak} MiB, {2 * CRYPTO_BYTES // MIB} of them the benchmark's own buffers")


if __name__ == "__main__":
    main()
