"""Django's admin as a whole: its name, and its users and groups. API tokens are nobody's but their user's.

Who makes users and fills groups can give themselves any role: it needs the right to assign roles at the root, besides
Django's own. The last administrator stays.
"""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from typing_extensions import override

from console import second_factor
from console.models import ExternalIdentity
from inventory.admin import LookOnly
from inventory.authorize import may
from inventory.errors import ServiceError
from inventory.services import access, roles
from inventory.services.access import AccountChange

admin.site.site_header = "Bartizan administration"
admin.site.site_title = "Bartizan administration"
admin.site.index_title = "What the database says"

if TYPE_CHECKING:  # only django-stubs knows them as generic
    ModelAdmin = admin.ModelAdmin[Any]
    BaseUserAdmin = UserAdmin[User]
else:
    ModelAdmin, BaseUserAdmin = admin.ModelAdmin, UserAdmin


class ForAdministrators(ModelAdmin):
    """Rows that give rights."""

    @override
    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may(request.user, roles.ASSIGN) and super().has_view_permission(request, obj)

    @override
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may(request.user, roles.ASSIGN) and super().has_add_permission(request)

    @override
    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may(request.user, roles.ASSIGN) and super().has_change_permission(request, obj)

    @override
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may(request.user, roles.ASSIGN) and super().has_delete_permission(request, obj)

    @override
    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The last step of a change, in its transaction."""
        super().save_related(request, form, formsets, change)
        roles.refuse_without_administrator()

    # Django calls these two for whatever was saved, a password that was set included.
    @override
    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        access.record_account(obj, AccountChange.ADDED, actor=str(request.user))
        return super().log_addition(request, obj, message)

    @override
    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        if fields := _changed(message):
            access.record_account(obj, AccountChange.CHANGED, actor=str(request.user), fields=fields)
        return super().log_change(request, obj, message)

    @override
    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        with transaction.atomic():
            access.record_account(obj, AccountChange.DELETED, actor=str(request.user))
            super().delete_model(request, obj)
            roles.refuse_without_administrator()

    @override
    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        with transaction.atomic():
            for account in queryset:
                access.record_account(account, AccountChange.DELETED, actor=str(request.user))
            super().delete_queryset(request, queryset)
            roles.refuse_without_administrator()


def _changed(message: Any) -> list[str]:
    """The fields that Django's message about a change names; empty where a form was saved as it was."""
    parts = message if isinstance(message, list) else []
    return [str(field) for part in parts for told in part.values() for field in told.get("fields", ())]


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserRows(ForAdministrators, BaseUserAdmin):
    list_display = ("username", "email", "first_name", "last_name", "is_staff", "has_second_factor")
    list_select_related = ("second_factor",)
    actions = ("remove_second_factor",)

    @admin.display(description="second factor", boolean=True)
    def has_second_factor(self, user: User) -> bool:
        return hasattr(user, "second_factor")

    @admin.action(description="Remove second factor of selected users")
    def remove_second_factor(self, request: HttpRequest, chosen: QuerySet[User]) -> None:
        """Of each for itself, as far as they have one."""
        for username in chosen.values_list("username", flat=True):
            try:
                second_factor.remove(username=username, actor=request.user)
            except ServiceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(request, f"The second factor of {username} is removed", messages.SUCCESS)


@admin.register(Group)
class GroupRows(ForAdministrators, GroupAdmin):
    pass


@admin.register(ExternalIdentity)
class ExternalIdentityRows(LookOnly):
    """Which users come from elsewhere. A person who gets a new identifier there is another person here."""

    list_display = ["user", "source", "issuer", "subject", "created_at"]
    list_select_related = ["user"]
    list_filter = ["source"]
    search_fields = ["user__username", "subject"]
