"""Django's admin as a whole: its name. Users and groups are Django's own; API tokens are nobody's but their user's."""

from django.contrib import admin

admin.site.site_header = "Bartizan administration"
admin.site.site_title = "Bartizan administration"
admin.site.index_title = "What the database says"
