"""Debian, measured by firmware, shim, GRUB and kernel, attested through the agent protocol: Secure Boot on and off."""

from pathlib import Path

import pytest
from django.contrib.auth.models import User

from attestation.models import PendingRegistration, Verdict, VerdictReason, VerdictStatus
from attestation.services import anchors, enrolment, references, verifier, verifier_identity
from inventory.models import Cluster, Host
from lab.tpm import TpmAuthority
from lab.user import LabUser
from tests.attestation.host_agent.host import running_agent, running_registrar
from tests.attestation.host_agent.measured_guest import MeasuredGuest, make_disk, powered_on

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sent")]


def attested(guest: MeasuredGuest, cluster: Cluster, registrar: str, alice: User) -> Verdict:
    """The guest becomes a host of the cluster: its agent registers, its TPM is enrolled, and it is attested."""
    guest.boot()
    name = guest.folder.name
    ca = guest.folder / "console-ca.pem"
    ca.write_text(verifier_identity.ca_pem())
    host = Host.objects.create(cluster=cluster, name=name, uri=f"qemu+tls://{name}/system")
    with running_agent(
        guest.folder, registrar, ca=ca, agent_id=name, tpm=guest.tpm, event_log=guest.event_log, ima_log=guest.ima_log
    ) as agent:
        assert agent.said("registered as"), agent.lines
        row = PendingRegistration.objects.get(agent_id=name)
        enrolment.enrol_host(host_id=host.pk, registration_id=row.pk, actor=alice)
        verifier.attest_hosts([host.pk], reason=VerdictReason.REGISTRATION)
    return Verdict.objects.get(host=host)


def test_secure_boot_on_and_off(tmp_path: Path, cluster: Cluster, alice: User) -> None:
    authority = TpmAuthority(tmp_path / "tpm-ca", LabUser.current())
    disk = make_disk(tmp_path)
    on, off = tmp_path / "secure-boot-on", tmp_path / "secure-boot-off"
    for folder in (on, off):
        folder.mkdir()
    with (
        powered_on(on, disk, authority, secure_boot=True) as guest,
        powered_on(off, disk, authority, secure_boot=False) as other,
        running_registrar() as registrar,
    ):
        anchors.add_anchor(name="TPM CA", certificate=authority.certificate.read_text(), actor=alice)
        good = attested(guest, cluster, registrar, alice)
        assert (good.status, good.secure_boot) == (VerdictStatus.PASSED, True), good.message
        assert good.findings == []
        evidence = good.evidence
        assert evidence is not None and evidence.event_log is not None and evidence.event_log.event_count > 30
        baseline = references.trust_boot(verdict_id=good.pk, reason="seen on its console", actor=alice)
        assert "vmlinuz" in baseline.body and "Debian" in baseline.body and "Microsoft" in baseline.body

        bad = attested(other, cluster, registrar, alice)
        assert (bad.status, bad.secure_boot) == (VerdictStatus.FAILED, False), bad.message
        codes = {each["code"]: each["severity"] for each in bad.findings}
        assert codes["secure_boot_off"] == "error"
        assert "log_does_not_replay" not in codes and "event_data_forged" not in codes, bad.findings
