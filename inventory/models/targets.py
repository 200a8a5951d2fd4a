"""What jobs, events and alarms are about."""

from django.db import models


class TargetKind(models.TextChoices):
    """What a job or an event is about."""

    DATACENTER = "datacenter", "Data center"
    CLUSTER = "cluster", "Cluster"
    HOST = "host", "Host"
    DATASTORE = "datastore", "Datastore"
    VIRTUAL_MACHINE = "vm", "Virtual machine"
    KMS_CLUSTER = "kms", "Key provider"
    STORAGE_POLICY = "policy", "Storage policy"
    BUNDLE = "bundle", "Exported VM"
    SYSLOG_TARGET = "syslog", "Syslog target"
    CONSOLE = "console", "Console"
