"""The product's addresses. Each app's pages stand below its own prefix."""

from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.urls import include, path

from console import (
    api_docs,
    api_token_views,
    health,
    login_views,
    metrics,
    own_password_views,
    second_factor_views,
    views,
)
from console.api import api
from console.sign_on import views as sign_on
from inventory.views import alarms, approvals, events, roles

urlpatterns = [
    path("", views.home, name="home"),
    path("healthz", health.live, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("metrics", metrics.metrics, name="metrics"),
    path("login/", login_views.Login.as_view(), name="login"),
    path("login/code/", login_views.code, name="login-code"),
    path("login/oidc/", sign_on.begin, name="oidc-begin"),
    path("login/oidc/callback/", sign_on.finish, name="oidc-finish"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("theme/", views.choose_theme, name="theme"),
    path("search/", views.search, name="search"),
    path("tasks/", views.tasks, name="tasks"),
    path("tasks/<uuid:job_id>/cancel/", views.cancel_task, name="cancel-task"),
    path("events/", events.index, name="events"),
    path("events/export/", events.export, name="export-events"),
    path("events/checkpoints/sign/", events.sign, name="sign-checkpoint"),
    path("alarms/", alarms.index, name="alarms"),
    path("alarms/<uuid:alarm_id>/acknowledge/", alarms.acknowledge, name="acknowledge-alarm"),
    path("approvals/", approvals.index, name="approvals"),
    path("approvals/<uuid:job_id>/approve/", approvals.approve, name="approve-task"),
    path("approvals/rules/<str:action>/switch/", approvals.switch, name="switch-two-person-rule"),
    path("roles/", roles.index, name="roles"),
    path("roles/add/", roles.add, name="add-role"),
    path("roles/<uuid:assignment_id>/remove/", roles.remove, name="remove-role"),
    path("inventory/", include("inventory.urls")),
    path("encryption/", include("encryption.urls")),
    path("attestation/", include("attestation.urls")),
    path("appliance/", include("console.appliance.urls")),
    path("api-tokens/", api_token_views.index, name="api-tokens"),
    path("api-tokens/add/", api_token_views.add, name="add-api-token"),
    path("api-tokens/<uuid:token_id>/revoke/", api_token_views.revoke, name="revoke-api-token"),
    path("password/", own_password_views.change, name="change-password"),
    path("second-factor/", second_factor_views.index, name="second-factor"),
    path("second-factor/enrol/", second_factor_views.enrol, name="enrol-second-factor"),
    path("second-factor/recovery-codes/", second_factor_views.renew, name="renew-recovery-codes"),
    path("second-factor/remove/", second_factor_views.remove, name="remove-second-factor"),
    path("api/v1/docs", api_docs.page, name="api-docs"),
    path("api/v1/", api.urls),
    path("admin/login/", login_views.admin_login),
    path("admin/password_change/", own_password_views.admin_form),
    path("admin/", admin.site.urls),
]
handler400 = "console.views.bad_request"
handler403 = "console.views.permission_denied"
handler404 = "console.views.page_not_found"
handler500 = "console.views.server_error"
