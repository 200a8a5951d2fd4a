"""Use cases of the appliance. One function each; web, API and tasks call the same."""


def register() -> None:
    """Tells inventory what jobs, events and alarms are about besides its own objects."""
    from console.models import SyslogTarget
    from inventory import events
    from inventory.models import TargetKind

    events.register_target(SyslogTarget, TargetKind.SYSLOG_TARGET)
