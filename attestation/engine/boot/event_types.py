"""Event types and their names: TCG PC Client Platform Firmware Profile (PFP) 1.06, table 14."""

from enum import IntEnum


class EventType(IntEnum):
    """The types that a Linux or Windows host's log holds. A log may hold others: see `type_name`."""

    PREBOOT_CERT = 0x0
    POST_CODE = 0x1
    NO_ACTION = 0x3
    SEPARATOR = 0x4
    ACTION = 0x5
    EVENT_TAG = 0x6
    S_CRTM_CONTENTS = 0x7
    S_CRTM_VERSION = 0x8
    CPU_MICROCODE = 0x9
    PLATFORM_CONFIG_FLAGS = 0xA
    TABLE_OF_DEVICES = 0xB
    COMPACT_HASH = 0xC
    IPL = 0xD
    IPL_PARTITION_DATA = 0xE
    NONHOST_CODE = 0xF
    NONHOST_CONFIG = 0x10
    NONHOST_INFO = 0x11
    OMIT_BOOT_DEVICE_EVENTS = 0x12
    POST_CODE2 = 0x13
    EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EFI_VARIABLE_BOOT = 0x80000002
    EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EFI_GPT_EVENT = 0x80000006
    EFI_ACTION = 0x80000007
    EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EFI_HANDOFF_TABLES = 0x80000009
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EFI_HANDOFF_TABLES2 = 0x8000000B
    EFI_VARIABLE_BOOT2 = 0x8000000C
    EFI_GPT_EVENT2 = 0x8000000D
    EFI_HCRTM_EVENT = 0x80000010
    EFI_VARIABLE_AUTHORITY = 0x800000E0
    EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2


_NAMES: dict[int, str] = {kind.value: f"EV_{kind.name}" for kind in EventType}

IMAGE_TYPES = frozenset(
    {
        EventType.EFI_BOOT_SERVICES_APPLICATION.value,
        EventType.EFI_BOOT_SERVICES_DRIVER.value,
        EventType.EFI_RUNTIME_SERVICES_DRIVER.value,
    }
)
VARIABLE_TYPES = frozenset(
    {
        EventType.EFI_VARIABLE_DRIVER_CONFIG.value,
        EventType.EFI_VARIABLE_BOOT.value,
        EventType.EFI_VARIABLE_BOOT2.value,
        EventType.EFI_VARIABLE_AUTHORITY.value,
    }
)


def type_name(kind: int) -> str:
    """The TCG's name (EV_SEPARATOR), or the number in hexadecimal for a type that is not in the profile."""
    return _NAMES.get(kind) or f"0x{kind:08x}"
