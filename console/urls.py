"""The product's addresses. Each app's pages stand below its own prefix."""

from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.urls import include, path

from console import views

urlpatterns = [
    path("", views.home, name="home"),
    path("login/", views.login, name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("theme/", views.choose_theme, name="theme"),
    path("search/", views.search, name="search"),
    path("tasks/", views.tasks, name="tasks"),
    path("tasks/<uuid:job_id>/cancel/", views.cancel_task, name="cancel-task"),
    path("alarms/", views.alarms, name="alarms"),
    path("inventory/", include("inventory.urls")),
    path("encryption/", include("encryption.urls")),
    path("encryption/", include("encryption.urls")),
    path("admin/", admin.site.urls),
]
handler400 = "console.views.bad_request"
handler403 = "console.views.permission_denied"
handler404 = "console.views.page_not_found"
handler500 = "console.views.server_error"
