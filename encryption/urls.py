"""Addresses of the encryption pages, below /encryption/."""

from django.urls import path

from encryption.views import key_providers, vm_options

app_name = "encryption"
urlpatterns = [
    path("vms/<uuid:vm_id>/options/", vm_options.show, name="vm-options"),
    path("vms/<uuid:vm_id>/options/plan/", vm_options.plan, name="vm-plan"),
    path("vms/<uuid:vm_id>/card/", vm_options.card, name="vm-card"),
    path("kms/", key_providers.index, name="kms"),
    path("kms/add/", key_providers.add, name="kms-add"),
    path("kms/<uuid:cluster_id>/", key_providers.detail, name="kms-cluster"),
    path("kms/<uuid:cluster_id>/servers/add/", key_providers.add_server, name="kms-add-server"),
    path("kms/servers/<uuid:server_id>/remove/", key_providers.remove_server, name="kms-remove-server"),
    path("kms/<uuid:cluster_id>/trust/", key_providers.trust, name="kms-trust"),
    path("kms/<uuid:cluster_id>/client-key/", key_providers.create_client_key, name="kms-client-key"),
    path("kms/<uuid:cluster_id>/client-request.pem", key_providers.client_request, name="kms-client-request"),
    path(
        "kms/<uuid:cluster_id>/client-certificate/",
        key_providers.install_client_certificate,
        name="kms-client-certificate",
    ),
    path("kms/<uuid:cluster_id>/check/", key_providers.check, name="kms-check"),
    path("kms/<uuid:cluster_id>/default/", key_providers.set_default, name="kms-default"),
    path("kms/<uuid:cluster_id>/remove/", key_providers.remove, name="kms-remove"),
]
