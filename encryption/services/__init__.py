"""Use cases of encryption. One function each; web, API, command line and tasks call the same."""


def register() -> None:
    """Tells inventory what this app adds: objects that jobs and events are about, the keys before a start. Has workers
    check their ciphers first."""
    from attestation.services import verifier
    from encryption.models import Bundle, CryptoInventory, CryptoProcess, KmsCluster, StoragePolicy
    from encryption.services import (
        adoption,
        autostart,
        compliance,
        exposure,
        host_trust,
        migration,
        options,
        release,
        self_check,
    )
    from inventory import events
    from inventory.models import TargetKind
    from inventory.services import power, sync, virtual_machines, vm_rows, watch

    events.register_target(KmsCluster, TargetKind.KMS_CLUSTER)
    events.register_target(Bundle, TargetKind.BUNDLE)
    events.register_target(CryptoInventory, TargetKind.CONSOLE)
    events.register_target(CryptoProcess, TargetKind.CONSOLE)
    power.register_start_guard(release.refuse_saved_state)
    power.register_start_step(adoption.before_start)
    power.register_start_step(release.send_keys)
    sync.register_changed(adoption.look_for_unknown)
    power.register_after_start(release.withdraw_keys)
    virtual_machines.register_removal_guard(release.keep_keyed_rows)
    watch.register_reconnected(autostart.start_again)
    sync.register_changed(exposure.review_host)
    vm_rows.register_detached(options.forget_detached)
    events.register_target(StoragePolicy, TargetKind.STORAGE_POLICY)
    sync.register_changed(compliance.after_change)
    watch.register_reconnected(compliance.after_reconnect)
    release.register_key_gate(host_trust.attested)
    verifier.register_trust_changed(host_trust.trust_changed)
    sync.register_moving(migration.moving)
    self_check.register()
