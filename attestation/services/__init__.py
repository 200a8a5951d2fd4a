"""Use cases of attestation, one module a noun. Web, API, command line and tasks call the same functions."""


def register() -> None:
    """Tells inventory what this app adds: hosts that come back are attested anew."""
    from attestation.services import hosts
    from inventory.services import watch

    watch.register_reconnected(hosts.after_reconnect)
