"""Who may do what: four roles, four permissions."""

from __future__ import annotations

from enum import StrEnum


class Permission(StrEnum):
    """A kind of thing that can be done."""

    READ = "look"
    OPERATE = "operate the fleet"
    APPROVE = "approve or release"
    ADMINISTER = "administer accounts, gateways and erasures"


_ROLES: dict[str, frozenset[Permission]] = {
    "viewer": frozenset({Permission.READ}),
    "operator": frozenset({Permission.READ, Permission.OPERATE}),
    # Whoever approves doesn't start: two people stand behind a release.
    "approver": frozenset({Permission.READ, Permission.APPROVE}),
    "admin": frozenset(Permission),
}


def may(role: str, permission: Permission) -> bool:
    """Whether a role may do this; an unknown one may do nothing."""
    return permission in _ROLES.get(role, frozenset())


def roles_that(permission: Permission) -> tuple[str, ...]:
    """The roles that may do this."""
    return tuple(role for role, allowed in _ROLES.items() if permission in allowed)
