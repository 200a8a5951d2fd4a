"""Addresses of the attestation pages, below /attestation/."""

from django.urls import path

from attestation.views import cluster, enrolment, report, security, trust

app_name = "attestation"
urlpatterns = [
    path("datacenters/<uuid:datacenter_id>/security/", security.of_datacenter, name="datacenter-security"),
    path("clusters/<uuid:cluster_id>/security/", security.of_cluster, name="cluster-security"),
    path("clusters/<uuid:cluster_id>/", cluster.show, name="cluster"),
    path("clusters/<uuid:cluster_id>/policy/", cluster.edit_policy, name="edit-policy"),
    path("clusters/<uuid:cluster_id>/references/edit/", cluster.edit_references, name="edit-references"),
    path("references/<uuid:reference_id>/", cluster.version, name="reference"),
    path("references/<uuid:reference_id>/approve/", cluster.approve, name="approve-reference"),
    path("hosts/<uuid:host_id>/", report.show, name="report"),
    path("hosts/<uuid:host_id>/attest/", report.attest, name="attest"),
    path("hosts/<uuid:host_id>/enrol/", enrolment.enrol, name="enrol"),
    path("hosts/<uuid:host_id>/accept-new-tpm/", enrolment.accept_new_tpm, name="accept-new-tpm"),
    path("hosts/<uuid:host_id>/remove-tpm/", enrolment.remove, name="remove-tpm"),
    path("verdicts/<int:verdict_id>/boot-log/", report.boot_log, name="boot-log"),
    path("verdicts/<int:verdict_id>/evidence.zip", report.download, name="evidence"),
    path("verdicts/<int:verdict_id>/trust/", report.trust_boot, name="trust-boot"),
    path("verdicts/<int:verdict_id>/accept/", report.accept, name="accept-changes"),
    path("trust/", trust.index, name="trust"),
    path("trust/verifier-ca.pem", trust.verifier_ca, name="verifier-ca"),
    path("trust/anchors/add/", trust.add, name="add-anchor"),
    path("trust/anchors/<uuid:anchor_id>/remove/", trust.remove, name="remove-anchor"),
    path("trust/registrations/<uuid:registration_id>/dismiss/", enrolment.dismiss, name="dismiss-registration"),
]
