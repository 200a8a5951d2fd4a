"""Pages of attestation, and where they plug into inventory's."""

from attestation.views import cluster, enrolment, report, security, trust
from inventory.authorize import VIEW_ALL
from inventory.models import TargetKind
from inventory.views import extensions

extensions.add_navigation(extensions.Entry("TPM Trust", "attestation:trust", "certificate", VIEW_ALL))
extensions.add_monitor_section(
    TargetKind.DATACENTER, extensions.Section("", "Security", "attestation:datacenter-security")
)
extensions.add_monitor_section(TargetKind.CLUSTER, extensions.Section("", "Security", "attestation:cluster-security"))
extensions.add_monitor_section(TargetKind.HOST, extensions.Section("", "Attestation", "attestation:report"))
extensions.add_section(TargetKind.CLUSTER, extensions.Section("Security", "Attestation", "attestation:cluster"))
extensions.add_badges(TargetKind.HOST, security.badges)
extensions.add_list_badges(TargetKind.HOST, security.list_badges)
extensions.add_action(TargetKind.HOST, enrolment.actions)

__all__ = ["cluster", "enrolment", "report", "security", "trust"]
