"""What a campaign that personalizes leaves on devices, and what each of its rounds does with it.

A device's plan marks some tensors as personal. Ways to learn with them:

* `fedper` (arXiv 1912.00818): devices train them beside the others, keep them, share the others.
* `fedbabu` (arXiv 2106.06042): they stay as they were made while the others are learnt together; at
  the end each device trains them alone.
* `fine-tune-last` (arXiv 2205.13692, one-shot fine-tuning): all is learnt together; at the end
  each device trains them alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field

from fleet.protocol import fields
from fleet.protocol.manifest import Manifest
from fleet.protocol.numbers import Personal
from fleet.protocol.round_parameters import LEARNING_RATE

Way: TypeAlias = Literal["fedper", "fedbabu", "fine-tune-last"]
_TRAINS_WITH: dict[Way, Personal] = {
    "fedper": Personal.BESIDE,
    "fedbabu": Personal.FROZEN,
    "fine-tune-last": Personal.NOTHING,
}
MOST_ROUNDS = 10_000


class Personalize(BaseModel):
    """How devices of a campaign of kind `personalize` come to models of their own."""

    model_config = fields.FORM

    way: Way = "fedper"
    """`fedper`: devices train personal tensors beside the shared ones; `fedbabu`: only at the end;
    `fine-tune-last`: only at the end, after they were learnt together as all others."""
    tuning_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] | None = None
    """Rounds after the release in which each device trains its personal tensors alone and chooses
    how much of them to use; left out: none for `fedper`, 1 for the others."""
    tuning_epochs: Annotated[int, fields.EPOCHS.field(least=1)] | None = None
    """Of these rounds; `epochs` where left out."""
    tuning_learning_rate: Annotated[float, LEARNING_RATE] | None = None
    """Of these rounds; `learning_rate` where left out."""
    local_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = 0
    """Rounds in which each device trains all of its plan by itself, from what it was made with:
    where that is best for it, it uses that."""

    @property
    def tunings(self) -> int:
        """How many rounds of tuning there are."""
        if self.tuning_rounds is None:
            return 0 if self.way == "fedper" else 1
        return self.tuning_rounds

    @property
    def trains_with(self) -> Personal:
        """What a training round does with personal tensors."""
        return _TRAINS_WITH[self.way]

    def manifest(self, manifest: Manifest) -> Manifest:
        """A bundle as such a campaign sees it: plans with personal tensors, and what they share."""
        plans = tuple(plan for plan in manifest.plans if plan.personal_values)
        if self.trains_with is not Personal.NOTHING:
            plans = tuple(plan.shared() for plan in plans)
        return manifest.model_copy(update={"plans": plans})
