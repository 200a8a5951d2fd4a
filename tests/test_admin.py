"""Django's admin: operators see, nobody edits past the services, and no key material is on any page."""

import base64
import re
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from attestation.models import (
    AttestationPolicy,
    HostAttestation,
    PendingRegistration,
    ReferenceSet,
    TpmIdentity,
    TrustAnchor,
    Verdict,
    VerifierIdentity,
)
from console.models import ApiToken, ExternalIdentity, SecondFactor
from encryption.models import (
    Bundle,
    Compliance,
    DiskPolicy,
    Key,
    KmsCluster,
    KmsServer,
    Leftover,
    Purpose,
    StoragePolicy,
    VmSecurity,
    WrappedSecret,
)
from inventory.alarms import raise_alarm
from inventory.authorize import Role
from inventory.models import (
    Alarm,
    Cluster,
    Datacenter,
    Datastore,
    Event,
    Host,
    Job,
    JobStatus,
    RoleAssignment,
    VirtualMachine,
)
from tests import sample
from tests.sample import Sample

pytestmark = pytest.mark.django_db
PLANTED = b"planted-sealed-or-wrapped-bytes!"
WRITINGS = (PLANTED.decode(), PLANTED.hex(), base64.b64encode(PLANTED).decode()[:-4])
LOOK_ONLY = [
    Datacenter, Cluster, Host, Datastore, VirtualMachine, Job, Event, KmsCluster, KmsServer, Key, StoragePolicy,
    VmSecurity, WrappedSecret, Alarm, DiskPolicy, Compliance, Leftover, Bundle, TrustAnchor, TpmIdentity,
    PendingRegistration, AttestationPolicy, ReferenceSet, HostAttestation, Verdict, RoleAssignment,
    ExternalIdentity,
]  # fmt: skip


@pytest.fixture
def inventory() -> Sample:
    """With a row of every model, and bytes that must not be shown."""
    found = sample.make()
    provider = KmsCluster.objects.create(name="KMS", client_key_sealed=PLANTED, client_key_next_sealed=PLANTED)
    KmsServer.objects.create(cluster=provider, position=0, host="kms")
    key = Key.objects.create(cluster=provider, key_id="kmip-7")
    policy = StoragePolicy.objects.filter(encrypts=True)[0]
    VmSecurity.objects.create(virtual_machine=found.vm, policy=policy, key=key)
    WrappedSecret.objects.create(
        virtual_machine=found.vm, purpose=Purpose.NVRAM, key=key, wrapped=PLANTED, path="/images/x", secret_uuid=uuid4()
    )
    raise_alarm("host.disconnected", "kvm02 is disconnected", target=found.lost_host, evidence=["refused"])
    DiskPolicy.objects.create(virtual_machine=found.vm, target="vda", policy=policy)
    Compliance.objects.create(virtual_machine=found.vm, findings=[{"code": "disk_plain"}])
    Leftover.objects.create(host=found.host, path="/images/old.raw", kind=Leftover.Kind.ORIGINAL, fingerprint="x")
    Bundle.objects.create(folder="app-01", vm_name="app-01")
    RoleAssignment.objects.create(
        user=User.objects.create_user("dave"), role=Role.OPERATOR, cluster=found.cluster, assigned_by="alice"
    )
    ExternalIdentity.objects.create(user=User.objects.create_user("erin"), source="ldap", subject="0-1")
    _attestation(found)
    return found


def _attestation(found: Sample) -> None:
    """The sealed keys of the console toward agents too."""
    now, planted = timezone.now(), PLANTED.decode()
    VerifierIdentity.objects.create(ca_pem="x", ca_key_sealed=PLANTED, certificate_pem="x", key_sealed=PLANTED,
                                    not_after=now)  # fmt: skip
    TrustAnchor.objects.create(name="maker", certificate_pem="x", spki_sha256="0", fingerprint="0", not_after=now)
    TpmIdentity.objects.create(host=found.host, agent_id="a", ek_name="0", enrolled_by="alice", activated_at=now,
                               ek_public=b"", ak_public=b"")  # fmt: skip
    PendingRegistration.objects.create(
        agent_id="b",
        expected_auth_tag=planted,
        source_address="127.0.0.1",
        expires_at=now,
        ek_public=b"",
        ak_public=b"",
    )
    AttestationPolicy.objects.create(cluster=found.cluster)
    ReferenceSet.objects.create(cluster=found.cluster, version=1, body="{}", reason="x", made_by="alice")
    HostAttestation.objects.create(host=found.host)
    Verdict.objects.create(host=found.host, status="passed", message="x", reason="demand", checked_at=now)


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("alice"))
    return client


def pages(model: type) -> list[str]:
    """The list, a search in it, and every row."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"  # type: ignore[attr-defined]
    rows = [reverse(f"{name}_change", args=[row.pk]) for row in model.objects.all()]  # type: ignore[attr-defined]
    listed = reverse(f"{name}_changelist")
    return [listed, f"{listed}?q=a", *rows]


@pytest.mark.parametrize("model", LOOK_ONLY, ids=lambda model: model.__name__)
def test_rows_are_shown_without_key_material(operator: Client, inventory: Sample, model: type) -> None:
    found = pages(model)
    assert len(found) > 2
    for url in found:
        answer = operator.get(url)
        assert answer.status_code == 200, url
        assert not any(one in answer.content.decode() for one in WRITINGS), url


@pytest.mark.parametrize("model", LOOK_ONLY, ids=lambda model: model.__name__)
def test_nothing_is_added_changed_or_deleted(operator: Client, inventory: Sample, model: type) -> None:
    objects = model.objects  # type: ignore[attr-defined]
    before = list(objects.values())
    row = objects.all()[0]
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"  # type: ignore[attr-defined]
    assert operator.post(reverse(f"{name}_add"), {"name": "x"}).status_code == 403
    assert operator.post(reverse(f"{name}_change", args=[row.pk]), {"name": "x"}).status_code == 403
    assert operator.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    operator.post(reverse(f"{name}_changelist"), {"action": "delete_selected", "_selected_action": [row.pk], "post": 1})
    assert list(objects.values()) == before


def test_jobs_are_cancelled_through_the_service(operator: Client, inventory: Sample) -> None:
    live = sample.job_of(inventory.host, "inventory.refresh_host", JobStatus.PENDING)
    ended = Job.objects.filter(status=JobStatus.SUCCEEDED)[0]
    chosen = {"action": "cancel", "_selected_action": [str(live.pk), str(ended.pk)]}
    text = operator.post(reverse("admin:inventory_job_changelist"), chosen, follow=True).content.decode()
    live.refresh_from_db()
    assert live.status == JobStatus.CANCELLED
    assert "has ended already" in text
    assert Event.objects.filter(kind="job.cancel_requested", actor="alice").count() == 1


def test_one_who_may_look_at_jobs_cannot_cancel_them(client: Client, inventory: Sample) -> None:
    user = User.objects.create_user("bob", is_staff=True)
    RoleAssignment.objects.create(user=user, role=Role.AUDITOR, assigned_by="test")
    user.user_permissions.add(Permission.objects.get(codename="view_job"))
    client.force_login(user)
    running = Job.objects.get(status=JobStatus.RUNNING)
    url = reverse("admin:inventory_job_changelist")
    text = client.post(url, {"action": "cancel", "_selected_action": [str(running.pk)]}, follow=True).content.decode()
    running.refresh_from_db()
    assert running.cancel_requested is False
    assert "may not inventory.cancel_job" in text


def test_only_staff_come_in(client: Client) -> None:
    assert client.get(reverse("admin:index")).status_code == 302
    client.force_login(User.objects.create_user("charlie"))
    assert client.get(reverse("admin:inventory_host_changelist")).status_code == 302


@pytest.mark.parametrize("model", [ApiToken, SecondFactor], ids=lambda model: model.__name__)
def test_what_opens_the_console_is_not_in_it(model: type[Model]) -> None:
    assert not admin.site.is_registered(model)


def test_its_pages_hold_under_the_policy(operator: Client, inventory: Sample) -> None:
    """Nothing inline: the policy allows scripts and styles from files only."""
    urls = [reverse("admin:index"), reverse("admin:auth_user_add"), *pages(Job), *pages(VirtualMachine)[:3]]
    for url in urls:
        answer = operator.get(url)
        assert "style-src 'self';" in answer.headers["Content-Security-Policy"]
        page = answer.content.decode()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page), url
        inline = [tag for tag in re.findall(r"<script[^>]*>", page) if "src=" not in tag]
        assert [tag for tag in inline if "application/json" not in tag] == [], url


def test_what_is_done_with_users_and_groups_is_in_the_history_without_any_password(operator: Client) -> None:
    secret = "a planted password 17"
    operator.post(reverse("admin:auth_group_add"), {"name": "night shift"})
    new = {"username": "dora", "password1": secret, "password2": secret, "usable_password": "true"}
    assert operator.post(reverse("admin:auth_user_add"), new).status_code == 302
    dora = User.objects.get(username="dora")
    change = reverse("admin:auth_user_change", args=[dora.pk])
    initial = operator.get(change).context["adminform"].form["date_joined"].value()
    shape = {
        "username": "dora", "is_active": "on", "date_joined_0": f"{initial:%Y-%m-%d}",
        "date_joined_1": f"{initial:%H:%M:%S}", "initial-date_joined_0": f"{initial:%Y-%m-%d}",
        "initial-date_joined_1": f"{initial:%H:%M:%S}",
    }  # fmt: skip
    assert operator.post(change, shape).status_code == 302
    assert operator.post(change, shape | {"is_superuser": "on"}).status_code == 302
    sets = reverse("admin:auth_user_password_change", args=[dora.pk])
    assert operator.post(sets, {"password1": secret + "8", "password2": secret + "8"}).status_code == 302
    chosen = {"action": "delete_selected", "_selected_action": [str(dora.pk)], "post": "yes"}
    assert operator.post(reverse("admin:auth_user_changelist"), chosen).status_code == 302
    rows = Event.objects.filter(data__has_key="account").order_by("id")
    assert [(row.kind, row.data["fields"], row.data["is_superuser"]) for row in rows] == [
        ("group.added", [], False),
        ("user.added", [], False),
        ("user.changed", ["Superuser status"], True),
        ("user.changed", ["password"], True),
        ("user.deleted", [], True),
    ]
    assert {row.actor for row in rows} == {"alice"} and secret not in str(list(Event.objects.values()))
