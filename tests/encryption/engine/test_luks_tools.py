"""cryptsetup and qemu-img, in both directions: what we make they open, what they make we open."""

import subprocess
from pathlib import Path

import pytest

from encryption.engine import luks
from encryption.engine.convert import Conversion, convert, open_side
from encryption.engine.image import ImageFile
from encryption.engine.secret import Secret
from encryption.engine.verify import verify
from encryption.engine.xts import Xts
from tests.encryption.engine.images import OTHER_PASSPHRASE, PASSPHRASE, MemoryImage, Recorder, decrypted, encrypted

DISK = b"".join(number.to_bytes(4, "big") * 128 for number in range(2048))
CRYPTSETUP_FORMAT = [
    *("cryptsetup", "luksFormat", "-q", "--type", "luks1", "--cipher", "aes-xts-plain64", "--key-size", "512"),
    *("--pbkdf-force-iterations", "1000"),
]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(PASSPHRASE.reveal())
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return done.stdout


def qemu_img(*words: str | Path) -> None:
    """qemu-img when it makes LUKS headers: on a busy machine it may fail to time its own key derivation."""
    command = ["qemu-img", *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    for _ in range(4):
        if "CPU usage" not in done.stderr:
            break
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def opens(image: Path, key: Path) -> bool:
    command = ["cryptsetup", "luksOpen", "--test-passphrase", "--key-file", str(key), str(image)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def qemu_options(image: Path, key: Path) -> tuple[str, str, str]:
    return "--object", f"secret,id=s,file={key}", f"driver=luks,key-secret=s,file.filename={image}"


def qemu_read(image: Path, key: Path, raw: Path) -> bytes:
    secret, value, opts = qemu_options(image, key)
    run("qemu-img", "convert", secret, value, "-O", "raw", "--image-opts", opts, raw)
    return raw.read_bytes()


def test_both_accept_and_read_what_we_make(tmp_path: Path, key_file: Path) -> None:
    image = tmp_path / "ours.luks"
    image.write_bytes(encrypted(DISK).content)
    dump = run("cryptsetup", "luksDump", image)
    assert "xts-plain64" in dump
    assert "Payload offset:\t4040" in dump
    assert "MK bits:       \t512" in dump
    assert opens(image, key_file)
    assert qemu_read(image, key_file, tmp_path / "raw") == DISK


def test_neither_accepts_another_passphrase(tmp_path: Path, key_file: Path) -> None:
    image = tmp_path / "ours.luks"
    image.write_bytes(encrypted(DISK, OTHER_PASSPHRASE).content)
    assert not opens(image, key_file)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        qemu_read(image, key_file, tmp_path / "raw")
    assert "Invalid password" in caught.value.stderr


def test_qemu_writes_into_our_volume(tmp_path: Path, key_file: Path) -> None:
    image, raw = tmp_path / "ours.luks", tmp_path / "raw"
    image.write_bytes(luks.create(PASSPHRASE).header_bytes + bytes(len(DISK)))
    raw.write_bytes(DISK)
    secret, value, opts = qemu_options(image, key_file)
    run("qemu-img", "convert", "-n", secret, value, "-f", "raw", raw, "--target-image-opts", opts)
    assert decrypted(MemoryImage(image.read_bytes()), len(DISK)) == DISK


def test_we_read_what_qemu_makes(tmp_path: Path, key_file: Path) -> None:
    image, raw = tmp_path / "qemu.luks", tmp_path / "raw"
    raw.write_bytes(DISK)
    options = "key-secret=s,iter-time=10"
    qemu_img("convert", "--object", f"secret,id=s,file={key_file}", "-O", "luks", "-o", options, raw, image)
    content = image.read_bytes()
    assert luks.parse(content).payload_offset == luks.PREFIX_BYTES
    assert luks.parse(content).pack() == content[:592]
    assert decrypted(MemoryImage(content), len(DISK)) == DISK
    assert verify(Conversion(len(DISK), None, PASSPHRASE), MemoryImage(DISK), MemoryImage(content)).mismatch is None


@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_we_unlock_what_cryptsetup_makes(tmp_path: Path, key_file: Path, hash_name: str) -> None:
    image = tmp_path / "cryptsetup.luks"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    run(*CRYPTSETUP_FORMAT, "--hash", hash_name, "--key-file", key_file, image)
    volume_key = luks.unlock(image.read_bytes(), PASSPHRASE)
    dumped = tmp_path / "volume-key"
    dump = ("cryptsetup", "luksDump", "-q", "--dump-volume-key", "--volume-key-file", dumped, "--key-file", key_file)
    run(*dump, image)
    assert Secret(dumped.read_bytes()) == volume_key
    payload_offset = luks.parse(image.read_bytes()).payload_offset
    assert payload_offset == 4096 * 512

    # A disk behind such a header (another payload offset than QEMU's) is ours to read and to take over.
    content = image.read_bytes()[:payload_offset] + Xts(volume_key).encrypt(DISK, 0)
    assert decrypted(MemoryImage(content), len(DISK)) == DISK
    image.write_bytes(content)
    if hash_name == "sha256":
        assert qemu_read(image, key_file, tmp_path / "raw") == DISK


def test_cryptsetup_accepts_a_changed_passphrase(tmp_path: Path, key_file: Path) -> None:
    image, new_key = tmp_path / "image", tmp_path / "new-key"
    new_key.write_bytes(OTHER_PASSPHRASE.reveal())
    made = encrypted(DISK).content
    change = luks.change_passphrase(bytes(made), PASSPHRASE, OTHER_PASSPHRASE)
    payload = bytes(made[luks.PREFIX_BYTES :])
    image.write_bytes(change.both + payload)
    assert opens(image, key_file)
    assert opens(image, new_key)
    image.write_bytes(change.new_only + payload)
    assert not opens(image, key_file)
    assert opens(image, new_key)
    assert qemu_read(image, new_key, tmp_path / "raw") == DISK


def test_we_change_the_passphrase_of_a_foreign_volume(tmp_path: Path, key_file: Path) -> None:
    image, new_key = tmp_path / "image", tmp_path / "new-key"
    new_key.write_bytes(OTHER_PASSPHRASE.reveal())
    with image.open("wb") as file:
        file.truncate(4 << 20)
    run(*CRYPTSETUP_FORMAT, "--hash", "sha512", "--key-file", key_file, image)
    change = luks.change_passphrase(image.read_bytes(), PASSPHRASE, OTHER_PASSPHRASE)
    image.write_bytes(change.new_only.ljust(4 << 20, b"\0"))
    assert opens(image, new_key)
    assert not opens(image, key_file)


def test_a_whole_conversion_of_files(tmp_path: Path, key_file: Path) -> None:
    """An odd size, holes, real files; QEMU sees the disk in whole sectors."""
    size = 5 * 1024 * 1024 + 77
    raw, image = tmp_path / "source.raw", tmp_path / "target.luks"
    with raw.open("wb") as file:
        file.truncate(size)
        file.seek(3 << 20)
        file.write(DISK)
        file.seek(size - 5)
        file.write(b"tail!")
    conversion = Conversion(size, None, PASSPHRASE)
    with raw.open("rb") as source, image.open("w+b") as target:
        receipt = convert(conversion, ImageFile(source), ImageFile(target), start=None, progress=Recorder())
        assert open_side(ImageFile(target), PASSPHRASE, size).offset == luks.PREFIX_BYTES
    assert receipt.hole_bytes == 2 << 20
    assert image.stat().st_size == conversion.target_bytes == luks.PREFIX_BYTES + 5 * 1024 * 1024 + 512
    assert opens(image, key_file)
    assert qemu_read(image, key_file, tmp_path / "raw") == raw.read_bytes().ljust(size + 512 - 77, b"\0")
