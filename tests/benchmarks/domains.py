"""Files for libvirt's test driver: a simulated host with as many virtual machines as wanted."""

from uuid import UUID

_DOMAIN = """<domain type='test'><name>vm-{number:05d}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory}</memory>
<vcpu>{vcpus}</vcpu><os><type arch='i686' machine='q35'>hvm</type>{firmware}</os><devices>{disks}{tpm}</devices>
<test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>{state}</test:runstate></domain>
"""
_LUKS = "<encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption>"
_DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vms/{number}/{target}.qcow2'>"
    "{luks}</source><target dev='{target}' bus='virtio'/></disk>"
)
_UEFI = (
    "<loader readonly='yes' secure='{secure}' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>"
    "<nvram>/vms/{number}/VARS.fd</nvram>"
)
_TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{secret}</backend></tpm>"


def simulated_host(count: int, *, base: int = 0) -> str:
    """The file's text. Of the VMs every second runs, every fourth is encrypted; `base` shifts the UUIDs."""
    domains = "".join(_domain(number, base) for number in range(count))
    return (
        "<node><cpu><mhz>2000</mhz><model>EPYC</model><active>64</active><nodes>2</nodes><sockets>1</sockets>"
        "<cores>32</cores><threads>1</threads></cpu><memory>536870912</memory>"
        f"{domains}<pool type='dir'><name>default</name><target><path>/vms</path></target></pool></node>"
    )


def vm_uuid(number: int, base: int = 0) -> UUID:
    return UUID(int=(0xBA51 << 112) | (4 << 76) | (8 << 60) | (base + number))


def _domain(number: int, base: int) -> str:
    encrypted, uefi = number % 4 == 0, number % 3 != 0
    secret = UUID(int=(0x5EC << 112) | (base + number))
    luks = _LUKS.format(uuid=secret) if encrypted else ""
    return _DOMAIN.format(
        number=number,
        uuid=vm_uuid(number, base),
        memory=1024 * (1 + number % 16),
        vcpus=1 + number % 8,
        firmware=_UEFI.format(secure="yes" if number % 2 else "no", number=number) if uefi else "",
        disks="".join(_DISK.format(number=number, target=target, luks=luks) for target in ("vda", "vdb")),
        tpm=_TPM.format(secret=f"<encryption secret='{secret}'/>" if encrypted else "") if uefi else "",
        state=1 if number % 2 else 5,
    )
