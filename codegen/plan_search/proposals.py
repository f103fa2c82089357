"""What a search for plans is asked for, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from codegen.plan_search.candidates import ChannelChoice
from codegen.plan_search.contributions import Contributions, Method
from codegen.plan_search.costs import Costs, DeltaBits, Limits, Round
from codegen.plan_search.finalists import HEAD_ONLY, HIGHEST_SUM
from codegen.plan_search.finals import Finals
from codegen.plan_search.proof import Linked
from codegen.plan_search.race import Result, Standing
from codegen.plan_search.training import Schedule
from codegen.program.plans import Plan, PlanSpec, State


@dataclass(frozen=True)
class Settings:
    """What is asked for. Limits of None are the board's, or none at all."""

    method: Method = "finetune"
    channel_choice: ChannelChoice = "norm"
    state: State = "q8.8"
    sram_bytes: int | None = None
    uplink_bytes: int | None = None
    instructions: int | None = None
    """Of a training step."""
    round: Round = field(default_factory=Round)
    """The round that ``uplink_bytes`` are of, the first one from the model's own weights."""
    last: int | None = None
    """Layers analysed, counted from the end; None for all."""
    schedule: Schedule = field(default_factory=Schedule)
    """Of candidates, whose contributions are measured."""
    repeats: int = 1
    finals: Finals = field(default_factory=Finals)
    given: tuple[PlanSpec, ...] = ()
    """Plans of the user's own, which take part in the last choice."""


@dataclass(frozen=True)
class Proposal:
    """A plan that took part in the last choice, where it was called ``origin``.

    ``predicted`` is its summed contribution, in the method's unit; None for a plan of the user's.
    ``optimal``: no other plan within the limits that it was searched for has a higher sum.
    ``linked`` has what it costs, measured on its image, ``standing`` how it did when trained.
    """

    name: str
    origin: str
    spec: PlanSpec
    plan: Plan
    predicted: float | None
    optimal: bool
    linked: Linked
    standing: Standing

    @property
    def costs(self) -> Costs:
        """What it costs on the board, and on the link."""
        return self.linked.costs


@dataclass(frozen=True)
class Variant:
    """The chosen plan with another option: what it costs, measured, or why it can't be."""

    option: str
    costs: Costs | None
    refusal: str = ""


@dataclass(frozen=True)
class PlanningResult:
    """Everything that the command shows. ``proposals`` by SRAM, those within the limits.

    ``left_out`` has the names of plans that were found and exceed them, once measured.
    ``samples`` is the number of samples that rounds were drawn from. ``summed_gain`` is what the
    plan of highest sum has in fact gained over the head alone, trained as candidates were.
    """

    board: str
    limits: Limits
    samples: int
    contributions: Contributions
    summed_gain: float
    finals: Finals
    race: Result
    proposals: tuple[Proposal, ...]
    left_out: tuple[str, ...]
    bits: DeltaBits
    variants: tuple[Variant, ...]

    @property
    def best(self) -> Proposal:
        """The plan that was chosen."""
        return self.of(self.race.chosen)

    @property
    def highest_sum(self) -> Proposal:
        """The plan of highest summed contribution within the limits; it may be the best as well."""
        return self.of(HIGHEST_SUM)

    @property
    def head_only(self) -> Proposal:
        """The plan that is part of every other."""
        return next((p for p in self.proposals if p.origin == HEAD_ONLY), self.highest_sum)

    def of(self, origin: str) -> Proposal:
        """The plan that was called ``origin`` when plans were chosen from."""
        return next(proposal for proposal in self.proposals if proposal.origin == origin)

    def plan_file(self) -> dict[str, Any]:
        """Content of a file of several plans (docs/specification/bundle.md)."""
        return {
            "plans": {
                p.name: p.spec.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
                for p in self.proposals
            }
        }
