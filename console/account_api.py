"""Routes of one's own account, and of somebody's second factor who has lost it."""

from datetime import datetime
from typing import Annotated

from django.contrib.auth import update_session_auth_hash
from django.http import HttpRequest
from ninja import Router, Schema
from pydantic import Field

from console import own_password, second_factor
from console.api_auth import refuse_tokens
from console.second_factor_views import place_of
from inventory.api.frame import Input, actor_of

Code = Annotated[str, Field(max_length=40)]
Password = Annotated[str, Field(max_length=4096)]


class SecondFactorOut(Schema):
    """`is_local`: there is a password here, and so may be a second factor. `enrolled_at` null: there is none."""

    is_local: bool
    is_required: bool
    enrolled_at: datetime | None
    recovery_codes_left: int


class EnrolmentOut(Schema):
    """`key` (Base32) or `uri` (what a QR code holds) for the authenticator; `ticket` for the confirmation."""

    key: str
    uri: str
    ticket: str


class EnrolIn(Input):
    ticket: Annotated[str, Field(max_length=1000)]
    code: Code


class CheckIn(Input):
    password: Password
    code: Code


class PasswordIn(Input):
    current: Password
    new: Password


class RecoveryCodesOut(Schema):
    """Shown here and never again. Each stands for a code once."""

    recovery_codes: list[str]


router = Router(tags=["Account"])


@router.get("/second-factor", response=SecondFactorOut)
def get_second_factor(request: HttpRequest) -> second_factor.State:
    """Your own."""
    return second_factor.state_of(actor=actor_of(request))


@router.get("/second-factor/enrolment", response=EnrolmentOut)
def begin_second_factor(request: HttpRequest) -> second_factor.Enrolment:
    """A fresh key; nothing is kept of it. It can be confirmed for 15 minutes."""
    return second_factor.begin_enrolment(place=place_of(request), actor=actor_of(request))


@router.post("/second-factor", response={201: RecoveryCodesOut})
def enrol_second_factor(request: HttpRequest, wanted: EnrolIn) -> RecoveryCodesOut:
    """Only from a session: who has got hold of a token must not lock out its user."""
    refuse_tokens(
        request, "token_may_not_enrol", "an API token cannot set up a second factor",
        hint="set it up under Second Factor in the user menu",
    )  # fmt: skip
    codes = second_factor.enrol(ticket=wanted.ticket, code=wanted.code, actor=actor_of(request))
    return RecoveryCodesOut(recovery_codes=list(codes))


@router.post("/second-factor/recovery-codes", response={201: RecoveryCodesOut})
def renew_recovery_codes(request: HttpRequest, wanted: CheckIn) -> RecoveryCodesOut:
    """Those of before end."""
    codes = second_factor.renew_recovery_codes(password=wanted.password, code=wanted.code, actor=actor_of(request))
    return RecoveryCodesOut(recovery_codes=list(codes))


@router.post("/second-factor/remove", response={204: None})
def remove_own_second_factor(request: HttpRequest, wanted: CheckIn) -> None:
    second_factor.remove_own(password=wanted.password, code=wanted.code, actor=actor_of(request))


@router.delete("/users/{username}/second-factor", response={204: None})
def remove_second_factor(request: HttpRequest, username: str) -> None:
    """Of somebody who has lost it; for administrators."""
    second_factor.remove(username=username, actor=actor_of(request))


@router.post("/password", response={204: None})
def change_password(request: HttpRequest, wanted: PasswordIn) -> None:
    """Your own. Only from a session: who has got hold of a token must not guess at the password."""
    refuse_tokens(
        request, "token_may_not_change_password", "an API token cannot change a password",
        hint="choose Change Password in the user menu",
    )  # fmt: skip
    user = own_password.change_password(current=wanted.current, new=wanted.new, actor=actor_of(request))
    update_session_auth_hash(request, user)
