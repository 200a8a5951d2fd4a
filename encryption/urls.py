"""Addresses of the encryption pages, below /encryption/."""

from django.urls import path

from encryption.views import key_providers, key_trust, keys, storage_policies, vm_options, vm_recrypt, vm_unlock

app_name = "encryption"
urlpatterns = [
    path("vms/<uuid:vm_id>/options/", vm_options.show, name="vm-options"),
    path("vms/<uuid:vm_id>/options/plan/", vm_options.plan, name="vm-plan"),
    path("vms/<uuid:vm_id>/recrypt/", vm_recrypt.recrypt_vm, name="vm-recrypt"),
    path("vms/<uuid:vm_id>/recrypt/plan/", vm_recrypt.plan, name="vm-recrypt-plan"),
    path("vms/<uuid:vm_id>/unlock/", vm_unlock.unlock_vm, name="vm-unlock"),
    path("vms/<uuid:vm_id>/card/", vm_options.card, name="vm-card"),
    path("policies/", storage_policies.index, name="policies"),
    path("policies/add/", storage_policies.add, name="policy-add"),
    path("policies/<uuid:policy_id>/", storage_policies.detail, name="policy"),
    path("policies/<uuid:policy_id>/edit/", storage_policies.edit, name="policy-edit"),
    path("policies/<uuid:policy_id>/clone/", storage_policies.clone, name="policy-clone"),
    path("policies/<uuid:policy_id>/delete/", storage_policies.delete, name="policy-delete"),
    path("kms/", key_providers.index, name="kms"),
    path("kms/add/", key_providers.add, name="kms-add"),
    path("kms/<uuid:cluster_id>/", key_providers.detail, name="kms-cluster"),
    path("kms/<uuid:cluster_id>/servers/add/", key_providers.add_server, name="kms-add-server"),
    path("kms/servers/<uuid:server_id>/remove/", key_providers.remove_server, name="kms-remove-server"),
    path("kms/servers/<uuid:server_id>/edit/", key_providers.edit_server, name="kms-edit-server"),
    path("kms/servers/<uuid:server_id>/move/<str:direction>/", key_providers.move_server, name="kms-move-server"),
    path("kms/servers/<uuid:server_id>/fetch-certificate/", key_trust.fetch, name="kms-fetch-certificate"),
    path("kms/servers/<uuid:server_id>/certificate/", key_trust.review, name="kms-review-certificate"),
    path("kms/<uuid:cluster_id>/client/make/<str:method>/", key_trust.make, name="kms-make-client"),
    path("kms/<uuid:cluster_id>/client/upload/", key_trust.upload, name="kms-upload-client"),
    path("kms/<uuid:cluster_id>/client/use/", key_trust.use, name="kms-use-client"),
    path("kms/<uuid:cluster_id>/client/<str:what>.pem", key_trust.download, name="kms-download"),
    path("kms/<uuid:cluster_id>/keys/refresh/", keys.refresh, name="kms-refresh-keys"),
    path("kms/<uuid:cluster_id>/keys/adopt/", keys.adopt, name="kms-adopt-key"),
    path("kms/<uuid:cluster_id>/trusted/<str:fingerprint>/remove/", key_trust.distrust, name="kms-distrust"),
    path("kms/keys/<uuid:key_id>/", keys.detail, name="kms-key"),
    path("kms/keys/<uuid:key_id>/revoke/", keys.revoke, name="kms-revoke-key"),
    path("kms/keys/<uuid:key_id>/destroy/", keys.destroy, name="kms-destroy-key"),
    path("kms/<uuid:cluster_id>/trust/", key_providers.trust, name="kms-trust"),
    path("kms/<uuid:cluster_id>/client-key/", key_providers.create_client_key, name="kms-client-key"),
    path("kms/<uuid:cluster_id>/client-request.pem", key_providers.client_request, name="kms-client-request"),
    path(
        "kms/<uuid:cluster_id>/client-certificate/",
        key_providers.install_client_certificate,
        name="kms-client-certificate",
    ),
    path("kms/<uuid:cluster_id>/recrypt/", key_providers.recrypt, name="kms-recrypt"),
    path("kms/<uuid:cluster_id>/adopt/", key_providers.adopt_keys, name="kms-adopt"),
    path("kms/<uuid:cluster_id>/check/", key_providers.check, name="kms-check"),
    path("kms/<uuid:cluster_id>/default/", key_providers.set_default, name="kms-default"),
    path("kms/<uuid:cluster_id>/remove/", key_providers.remove, name="kms-remove"),
]
