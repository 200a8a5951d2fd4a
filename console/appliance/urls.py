"""Addresses of the appliance's pages, below /appliance/."""

from django.urls import path

from console.appliance.views import crypto_modules, sections, syslog

app_name = "appliance"
urlpatterns = [
    path("", sections.index, name="index"),
    path("crypto-modules/", crypto_modules.index, name="crypto-modules"),
    path("crypto-modules/test/", crypto_modules.test, name="crypto-modules-test"),
    path("syslog/", syslog.index, name="syslog"),
    path("syslog/add/", syslog.add, name="syslog-add"),
    path("syslog/<uuid:syslog_target_id>/", syslog.target, name="syslog-target"),
    path("syslog/<uuid:syslog_target_id>/edit/", syslog.edit, name="syslog-edit"),
    path("syslog/<uuid:syslog_target_id>/remove/", syslog.remove, name="syslog-remove"),
    path("syslog/<uuid:syslog_target_id>/test/", syslog.send_test, name="syslog-test"),
    path("syslog/<uuid:syslog_target_id>/client/", syslog.upload_client, name="syslog-upload-client"),
    path("syslog/<uuid:syslog_target_id>/client/remove/", syslog.remove_client, name="syslog-remove-client"),
]
