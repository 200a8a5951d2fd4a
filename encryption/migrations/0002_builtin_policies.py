"""The two storage policies that are always there. Written out: a migration imports no code of the app."""

from django.db import migrations


def add(apps, schema_editor):
    policies = apps.get_model("encryption", "StoragePolicy")
    policies.objects.get_or_create(
        name="VM Encryption Policy",
        defaults={
            "description": "Home and chosen disks are encrypted under a key of the key provider",
            "encrypts": True,
            "is_builtin": True,
        },
    )
    policies.objects.get_or_create(
        name="No encryption",
        defaults={"description": "Everything lies on the datastore in clear", "encrypts": False, "is_builtin": True},
    )


def remove(apps, schema_editor):
    apps.get_model("encryption", "StoragePolicy").objects.filter(is_builtin=True).delete()


class Migration(migrations.Migration):
    dependencies = [("encryption", "0001_key_providers_and_secrets")]

    operations = [migrations.RunPython(add, remove)]
