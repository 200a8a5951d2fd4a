"""Routes of two-person approval."""

from typing import Self

from django.http import HttpRequest
from ninja import Router, Schema

from inventory.api.frame import actor_of
from inventory.api.schemas import JobOut
from inventory.services import approvals

router = Router(tags=["Two-person approval"])


class TwoPersonRuleOut(Schema):
    """Whether such operations wait for a second person. Their jobs have the status `waiting`."""

    action: str
    label: str
    is_on: bool

    @classmethod
    def of(cls, rule: approvals.Rule) -> Self:
        return cls(action=rule.action, label=rule.label, is_on=rule.is_on)


@router.get("/two-person-rules", response=list[TwoPersonRuleOut])
def list_two_person_rules(request: HttpRequest) -> list[TwoPersonRuleOut]:
    return [TwoPersonRuleOut.of(rule) for rule in approvals.rules(actor=actor_of(request))]


@router.post("/two-person-rules/{rule}/on", response=list[TwoPersonRuleOut])
def switch_two_person_rule_on(request: HttpRequest, rule: str) -> list[TwoPersonRuleOut]:
    """At once."""
    approvals.switch_on(action=rule, actor=actor_of(request))
    return list_two_person_rules(request)


@router.post("/two-person-rules/{rule}/off", response={202: JobOut})
def switch_two_person_rule_off(request: HttpRequest, rule: str) -> JobOut:
    """The job waits for a second person itself."""
    return JobOut.of(approvals.switch_off(action=rule, actor=actor_of(request)))
