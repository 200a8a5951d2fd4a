"""Backup and restore of the console's own data. VMs, their keys at the KMS, and the console key are not in it."""
