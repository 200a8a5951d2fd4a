"""Each situation of a lab host is what it says: judged by the engine that judges real hosts."""

import pytest

from attestation.engine.boot.components import observe
from attestation.engine.boot.eventlog import parse
from attestation.engine.boot.replay import ReplayedLog, pcr_values, replay_unproven
from attestation.engine.boot.secure_boot import secure_boot
from attestation.engine.tpm.algorithms import HashAlg
from lab.boots import Situation, measured_log, shown_log
from tests.attestation.recorded import HOST_A, HOST_B


def measured(situation: Situation) -> ReplayedLog:
    return replay_unproven(parse(measured_log(situation)), bank=HashAlg.SHA256)


def values(log: bytes) -> dict[int, bytes]:
    return dict(pcr_values(parse(log))[HashAlg.SHA256])


def test_they_are_the_recorded_boots() -> None:
    assert measured_log(Situation.NORMAL) == (HOST_A / "eventlog.bin").read_bytes()
    assert measured_log(Situation.SECURE_BOOT_OFF) == (HOST_B / "eventlog.bin").read_bytes()


def test_another_kernel_changes_its_components_alone() -> None:
    before, after = values(measured_log(Situation.NORMAL)), values(measured_log(Situation.CHANGED_KERNEL))
    assert {pcr for pcr in before if before[pcr] != after[pcr]} == {4, 9}
    good, other = observe(measured(Situation.NORMAL)), observe(measured(Situation.CHANGED_KERNEL))
    assert good.secure_boot.authorities == other.secure_boot.authorities
    assert len({one.digest for one in other.components} - {one.digest for one in good.components}) == 2


@pytest.mark.parametrize("situation", [Situation.SECURE_BOOT_OFF, Situation.EDITED_LOG])
def test_without_secure_boot(situation: Situation) -> None:
    assert secure_boot(measured(Situation.NORMAL)).enabled is True
    assert secure_boot(measured(situation)).enabled is False


def test_the_edited_log_is_not_what_was_measured() -> None:
    shown, log = values(shown_log(Situation.EDITED_LOG)), values(measured_log(Situation.EDITED_LOG))
    assert {pcr for pcr in log if shown[pcr] != log[pcr]} == {7}
    for situation in set(Situation) - {Situation.EDITED_LOG}:
        assert shown_log(situation) == measured_log(situation)
