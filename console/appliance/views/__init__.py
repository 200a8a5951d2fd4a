"""Pages of the appliance, and where they stand in the shell. A further page calls `sections.add`."""

from console.appliance.views import crypto_modules, sections, syslog
from inventory.authorize import VIEW_ALL
from inventory.models import TargetKind
from inventory.views import extensions

extensions.add_navigation(extensions.Entry("Appliance", "appliance:index", "cog", VIEW_ALL))
extensions.add_target(TargetKind.SYSLOG_TARGET, "appliance:syslog-target")
sections.add(sections.Section("Syslog", "appliance:syslog"))
sections.add(sections.Section("Cryptographic modules", "appliance:crypto-modules"))
sections.add(sections.Section("Roles", "roles"))
sections.add(sections.Section("Two-person approval", "approvals"))

__all__ = ["crypto_modules", "sections", "syslog"]
