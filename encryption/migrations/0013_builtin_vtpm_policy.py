"""What a home is under that only its vTPM asks to be encrypted. Written out: a migration imports no code of the app."""

from django.db import migrations


def add(apps, schema_editor):
    policies = apps.get_model("encryption", "StoragePolicy")
    name = "vTPM home"
    while policies.objects.filter(name=name).exists():
        name += " (built in)"
    policies.objects.create(
        name=name,
        description="The home is encrypted because of the vTPM; disks stay as they are",
        encrypts=True,
        is_builtin=True,
        is_for_vtpm=True,
    )


def remove(apps, schema_editor):
    apps.get_model("encryption", "StoragePolicy").objects.filter(is_for_vtpm=True).delete()


class Migration(migrations.Migration):
    dependencies = [("encryption", "0012_policy_of_vtpm_homes")]

    operations = [migrations.RunPython(add, remove)]
