"""What a screen gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fleet.service.client import Client
from fleet.service.roles import Permission, may, roles_that

Context: TypeAlias = Mapping[str, Any]
"""What a template is filled with."""


@dataclass(frozen=True)
class Page:
    """A request for a screen. Two people of one role see the same, so `who` isn't known here."""

    api: Client
    role: str
    fleet: str
    path: Mapping[str, str] = field(default_factory=dict)
    """Parts of the path, such as the device's name."""
    query: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    """What was filled in; of an action only. Its field `why` goes into the audit log."""

    def refusal(self, permission: Permission) -> str:
        """Why this role may not do something; empty where it may."""
        if may(self.role, permission):
            return ""
        others = " or ".join(roles_that(permission))
        return f"{self.role} may not {permission.value}; {others} may"


@dataclass(frozen=True)
class GoTo:
    """An action's end: another page, which tells `notice` once."""

    path: str
    """Without /ui, as `session.url` takes it."""
    notice: str = ""
    query: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Show:
    """An action's end: a page of its own, for what is told once or has to be put right."""

    template: str
    title: str
    context: Context
    status: int = 200


@dataclass(frozen=True)
class Screen:
    """A page: its path below /ui, what fills its template, where it is in the navigation."""

    path: str
    template: str
    title: str
    section: str
    fill: Callable[[Page], Context]


@dataclass(frozen=True)
class Action:
    """Something that a form does; `section` is that of the pages it belongs to."""

    path: str
    section: str
    act: Callable[[Page], GoTo | Show]


@dataclass
class Screens:
    """The screens and actions of a module."""

    section: str
    pages: list[Screen] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)

    def page(
        self, path: str, template: str, title: str
    ) -> Callable[[Callable[[Page], Context]], Callable[[Page], Context]]:
        """Of a function that fills a template. `title` may name parts of the path: `{device}`."""

        def add(fill: Callable[[Page], Context]) -> Callable[[Page], Context]:
            self.pages.append(Screen(path, template, title, self.section, fill))
            return fill

        return add

    def action(
        self, path: str
    ) -> Callable[[Callable[[Page], GoTo | Show]], Callable[[Page], GoTo | Show]]:
        """Of a function that does what a form asks for."""

        def add(act: Callable[[Page], GoTo | Show]) -> Callable[[Page], GoTo | Show]:
            self.actions.append(Action(path, self.section, act))
            return act

        return add
