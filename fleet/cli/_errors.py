"""Which exceptions are answers to the user, and which are defects of ours."""

from __future__ import annotations

_TREES = ("codegen", "device_runtime", "simulator", "fleet")


class CommandError(Exception):
    """A command can't do what it was asked; the message says why and what to do."""


def is_ours(module: str) -> bool:
    """Whether a module is one of ours, by its name."""
    return module.partition(".")[0] in _TREES


def is_expected(error: BaseException) -> bool:
    """True for operating system errors and for every exception class that our packages define.

    Each package derives the exceptions it raises for bad input from one base of its own, so the
    module that an exception class comes from tells the two kinds apart without importing them all.
    """
    if isinstance(error, OSError):
        return True
    return any(is_ours(base.__module__) for base in type(error).__mro__)


def message_of(error: BaseException) -> str:
    """One message without a traceback."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return str(error) or type(error).__name__
