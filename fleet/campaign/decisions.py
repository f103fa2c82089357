"""What somebody has to decide before a campaign goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, cast

What: TypeAlias = Literal["begin", "gate"]
When: TypeAlias = Literal["", "training", "soak"]

_NAME = re.compile(r"(begin|gate):([0-9]{1,9})(?::(training|soak))?")


@dataclass(frozen=True)
class Decision:
    """Whether a stage may begin, or what to do about one whose gates didn't pass.

    `when` they spoke: after a training round, after the soak, or when the stage had scored. Each is
    another decision.
    """

    what: What
    stage: int
    when: When = ""

    @property
    def name(self) -> str:
        """What it is kept under, and what a campaign says that it waits for."""
        return f"{self.what}:{self.stage}" + (f":{self.when}" if self.when else "")

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The decision of a name; None where it is none."""
        found = _NAME.fullmatch(name)
        if found is None or (found[1] == "begin" and found[3]):
            return None
        return cls(cast(What, found[1]), int(found[2]), cast(When, found[3] or ""))
