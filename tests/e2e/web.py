"""A browser's worth of HTTP: a session that logs in, follows links, fills in forms and submits them as a user would."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

import requests
from lxml import html


@dataclass
class Page:
    """One answer. `forms` are addressed by their action."""

    url: str
    status: int
    text: str

    @property
    def tree(self) -> html.HtmlElement:
        return html.fromstring(self.text)

    def form(self, action: str) -> html.FormElement:
        for form in self.tree.forms:
            if form.action and form.action.endswith(action):
                return form
        raise AssertionError(f"{self.url} has no form for {action}")

    def words(self) -> str:
        return " ".join(self.tree.text_content().split())


@dataclass
class User:
    """Somebody at a browser."""

    base: str
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str) -> Page:
        answer = self.session.get(urljoin(self.base, path), timeout=60)
        return Page(answer.url, answer.status_code, answer.text)

    def submit(self, page: Page, action: str, *, button: tuple[str, str] | None = None, **values: object) -> Page:
        """Fills in the form and presses its button; a list chooses several boxes, an empty one none."""
        form = page.form(action)
        data: dict[str, object] = {}
        for name, value in form.form_values():
            held = data.setdefault(name, [])
            assert isinstance(held, list)
            held.append(value)
        data |= values
        if button:
            data[button[0]] = button[1]
        answer = self.session.post(urljoin(page.url, form.action), data=data, headers={"Referer": page.url}, timeout=60)
        return Page(answer.url, answer.status_code, answer.text)

    def log_in(self, name: str, password: str) -> Page:
        return self.submit(self.get("/login/"), "/login/", username=name, password=password)

    def set_encryption(self, path: str, policy: str, disks: list[str]) -> Page:
        """Presses Apply in the VM Options panel: `disks` get the encrypting policy, the others are not encrypted."""
        page = self.get(path)
        form = page.form("/options/")

        def choice(field: str, wanted: str) -> str:
            options = form.xpath(f'.//select[@name="{field}"]/option')
            return str(next(one.get("value") for one in options if one.text_content() == wanted))

        chosen: dict[str, Any] = {
            field: choice(field, "VM Encryption Policy" if field.removeprefix("disk-") in disks else "No encryption")
            for field in form.xpath('.//select[starts-with(@name, "disk-")]/@name')
        }
        return self.submit(page, "/options/", **chosen, policy=choice("policy", policy))

    def json(self, path: str) -> Any:
        answer = self.session.get(urljoin(self.base, path), timeout=60)
        answer.raise_for_status()
        return answer.json()
