from django.db import migrations

# Before there were roles everybody who could log in could look at everything: they go on to.
AUDITOR = "auditor"


def assign(apps, schema_editor):
    user = apps.get_model("auth", "User")
    assignment = apps.get_model("inventory", "RoleAssignment")
    for one in user.objects.filter(is_active=True, is_superuser=False):
        assignment.objects.create(user=one, role=AUDITOR, assigned_by="Bartizan")


class Migration(migrations.Migration):
    dependencies = [("inventory", "0007_role_assignments"), ("auth", "0012_alter_user_first_name_max_length")]
    operations = [migrations.RunPython(assign, migrations.RunPython.noop)]
