"""Celery's entry points for the jobs and the schedule of this app. Arguments are ids and nothing else."""

from celery import shared_task

from encryption.services import (
    adoption,
    bundles,
    client_keys,
    clone,
    compliance,
    conversion,
    crypto_inventory,
    crypto_modules,
    deep_recrypt,
    disk_jobs,
    export,
    host_trust,
    import_vm,
    key_lifecycle,
    kms_health,
    leftover_files,
    leftovers,
    migration_probes,
    migration_run,
    new_vm_job,
    passphrases,
    recrypt,
    recrypt_many,
    rotation,
    unlock,
    vtpm_endorsement,
)
from inventory import jobs


@shared_task(name="encryption.create_client_key")
def create_client_key(job_id: str) -> None:
    jobs.run(job_id, client_keys.create_client_key)


@shared_task(name="encryption.make_inventory")
def make_inventory(job_id: str) -> None:
    jobs.run(job_id, crypto_inventory.run_make_inventory)


@shared_task(name="encryption.check_key_provider")
def check_key_provider(job_id: str) -> None:
    jobs.run(job_id, kms_health.check_key_provider)


@shared_task(name="encryption.apply_options")
def apply_options(job_id: str) -> None:
    jobs.run(job_id, conversion.apply_options)


@shared_task(name="encryption.fetch_server_certificate")
def fetch_server_certificate(job_id: str) -> None:
    jobs.run(job_id, kms_health.fetch_certificate)


@shared_task(name="encryption.issue_client_certificate")
def issue_client_certificate(job_id: str) -> None:
    jobs.run(job_id, client_keys.issue_client_certificate)


@shared_task(name="encryption.take_client_key")
def take_client_key(job_id: str) -> None:
    jobs.run(job_id, client_keys.take_client_key)


@shared_task(name="encryption.use_client_certificate")
def use_client_certificate(job_id: str) -> None:
    jobs.run(job_id, client_keys.use_client_certificate)


@shared_task(name="encryption.refresh_keys")
def refresh_keys(job_id: str) -> None:
    jobs.run(job_id, key_lifecycle.refresh_keys)


@shared_task(name="encryption.adopt_key")
def adopt_key(job_id: str) -> None:
    jobs.run(job_id, key_lifecycle.adopt_key)


@shared_task(name="encryption.revoke_key")
def revoke_key(job_id: str) -> None:
    jobs.run(job_id, key_lifecycle.revoke_key)


@shared_task(name="encryption.destroy_key")
def destroy_key(job_id: str) -> None:
    jobs.run(job_id, key_lifecycle.destroy_key)


@shared_task(name="encryption.make_transport_key")
def make_transport_key() -> None:
    client_keys.ensure_transport_key()


@shared_task(name="encryption.check_key_providers")
def check_key_providers() -> None:
    kms_health.check_all()


@shared_task(name="encryption.check_kms_cluster")
def check_kms_cluster(cluster_id: str) -> None:
    kms_health.check_cluster(cluster_id)


@shared_task(name="encryption.adopt_keys")
def adopt_keys(job_id: str) -> None:
    jobs.run(job_id, adoption.run_adopt_keys)


@shared_task(name="encryption.adopt_found")
def adopt_found() -> None:
    adoption.adopt_found()


@shared_task(name="encryption.create_vm")
def create_vm(job_id: str) -> None:
    jobs.run(job_id, new_vm_job.run_create_vm)


@shared_task(name="encryption.clone_vm")
def clone_vm(job_id: str) -> None:
    jobs.run(job_id, clone.run_clone_vm)


@shared_task(name="encryption.export_vm")
def export_vm(job_id: str) -> None:
    jobs.run(job_id, export.run_export_vm)


@shared_task(name="encryption.import_vm")
def import_a_vm(job_id: str) -> None:
    jobs.run(job_id, import_vm.run_import_vm)


@shared_task(name="encryption.delete_bundle")
def delete_bundle(job_id: str) -> None:
    jobs.run(job_id, bundles.run_delete_bundle)


@shared_task(name="encryption.look_for_bundles")
def look_for_bundles() -> None:
    bundles.look()


@shared_task(name="encryption.unlock_vm")
def unlock_vm(job_id: str) -> None:
    jobs.run(job_id, unlock.run_unlock_vm)
    unlock.start_what_waited(job_id)


@shared_task(name="encryption.unlock_of_provider")
def unlock_of_provider(cluster_id: str) -> None:
    unlock.unlock_of_provider(cluster_id)


@shared_task(name="encryption.recrypt_vm")
def recrypt_vm(job_id: str) -> None:
    jobs.run(job_id, recrypt.run_recrypt_vm)


@shared_task(name="encryption.deep_recrypt_vm")
def deep_recrypt_vm(job_id: str) -> None:
    jobs.run(job_id, deep_recrypt.run_deep_recrypt_vm)


@shared_task(name="encryption.rotate_passphrases")
def rotate_passphrases(job_id: str) -> None:
    jobs.run(job_id, passphrases.run_rotate_passphrases)


@shared_task(name="encryption.recrypt_vms")
def recrypt_vms(job_id: str) -> None:
    jobs.run(job_id, recrypt_many.run_recrypt_vms)


@shared_task(name="encryption.rotate_keys")
def rotate_keys() -> None:
    rotation.start_due()


@shared_task(name="encryption.find_leftovers")
def find_leftovers(job_id: str) -> None:
    jobs.run(job_id, leftover_files.run_find_leftovers)


@shared_task(name="encryption.find_all_leftovers")
def find_all_leftovers() -> None:
    leftovers.find_all()


@shared_task(name="encryption.destroy_leftover")
def destroy_leftover(job_id: str) -> None:
    jobs.run(job_id, leftover_files.run_destroy_leftover)


@shared_task(name="encryption.check_compliance")
def check_compliance(job_id: str) -> None:
    jobs.run(job_id, compliance.run_check)


@shared_task(name="encryption.check_compliance_of_all")
def check_compliance_of_all() -> None:
    compliance.check_all()


@shared_task(name="encryption.check_compliance_of_host")
def check_compliance_of_host(host_id: str) -> None:
    compliance.check_of_host(host_id)


@shared_task(name="encryption.check_compliance_of_changed")
def check_compliance_of_changed(host_id: str) -> None:
    compliance.check_of_changed(host_id)


@shared_task(name="encryption.add_disk")
def add_disk(job_id: str) -> None:
    jobs.run(job_id, disk_jobs.run_add_disk)


@shared_task(name="encryption.attach_disk")
def attach_disk(job_id: str) -> None:
    jobs.run(job_id, disk_jobs.run_attach_disk)


@shared_task(name="encryption.detach_disk")
def detach_disk(job_id: str) -> None:
    jobs.run(job_id, disk_jobs.run_detach_disk)


@shared_task(name="encryption.destroy_disk")
def destroy_disk(job_id: str) -> None:
    jobs.run(job_id, disk_jobs.run_destroy_disk)


@shared_task(name="encryption.unlock_on_host")
def unlock_on_host(host_id: str) -> None:
    host_trust.unlock_on_host(host_id)


@shared_task(name="encryption.withdraw_from_host")
def withdraw_from_host(host_id: str) -> None:
    host_trust.withdraw_from_host(host_id)


@shared_task(name="encryption.read_vtpm")
def read_vtpm(job_id: str) -> None:
    jobs.run(job_id, vtpm_endorsement.run_read_vtpm)


@shared_task(name="encryption.replace_vtpm_certificate")
def replace_vtpm_certificate(job_id: str) -> None:
    jobs.run(job_id, vtpm_endorsement.run_replace_certificate)


@shared_task(name="encryption.migrate_vm")
def migrate_vm(job_id: str) -> None:
    jobs.run(job_id, migration_run.run_migrate_vm)


@shared_task(name="encryption.probe_migration")
def probe_migration(job_id: str) -> None:
    jobs.run(job_id, migration_probes.run_probe_cluster)


@shared_task(name="encryption.probe_migrations")
def probe_migrations() -> None:
    migration_probes.probe_all()


@shared_task(name="encryption.test_crypto_modules_attestation")
def test_crypto_modules_attestation(job_id: str) -> None:
    jobs.run(job_id, crypto_modules.test_worker)


@shared_task(name="encryption.test_crypto_modules_control")
def test_crypto_modules_control(job_id: str) -> None:
    jobs.run(job_id, crypto_modules.test_worker)


@shared_task(name="encryption.test_crypto_modules_crypto")
def test_crypto_modules_crypto(job_id: str) -> None:
    jobs.run(job_id, crypto_modules.test_worker)


@shared_task(name="encryption.repeat_self_tests")
def repeat_self_tests() -> None:
    crypto_modules.repeat()
