"""The plan that fits and is nearest to one that doesn't."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from codegen.firmware.bundle import PlanReport
from codegen.plan_search.candidates import Selection, order_by_norm
from codegen.plan_search.contributions import Contributions
from codegen.plan_search.costs import Costs, Increment, Limits, weight_state_bytes
from codegen.plan_search.search import search
from codegen.program.lowering import lower
from codegen.program.plans import LastLayers, Plan, PlanSpec, WeightSpec, WeightUpdate, runs_of
from codegen.program.steps import Program

PARTS = 8
"""A layer can lose its channels in so many steps."""

MOST_COSTED = 100
"""Plans looked at: an error message may take seconds, not minutes."""


def nearest_fitting(program: Program, most_pool_bytes: int) -> Plan | None:
    """The part of ``program``'s plan that trains most in a pool of ``most_pool_bytes``.

    What is trained is counted in weights. Biases are cheap and move whole outputs: those of a layer
    count as much as all its weights. They go from the earliest layer on, channels of a layer in
    eighths, those of the smallest weights (L2 norm) first. The head stays, unless it alone is too
    much. None where nothing is left that fits.
    """
    graph, plan = program.graph, program.plan
    layers = {op.name: op for op in graph.convolutions}
    order = order_by_norm(graph)
    ranked = {
        item.layer: [c for c in order[item.layer] if c in set(item.channels)]
        for item in plan.weights
    }

    def part(selection: Selection) -> Plan:
        weights = tuple(
            WeightUpdate(layer, tuple(sorted(ranked[layer][:count])))
            for layer, count in selection.channels
        )
        biases = plan.biases[len(plan.biases) - selection.depth :]
        return dataclasses.replace(plan, biases=biases, weights=weights)

    def cost(selection: Selection) -> Costs:
        if selection not in costs:
            smaller = part(selection)
            if _trains_nothing(smaller):
                costs[selection] = Costs(sram_bytes=0, delta_bytes=0, instructions=0)
            else:
                made = lower(graph, smaller, most_pool_bytes)
                # What fits may get a smaller arena yet: more channels are ruled out by the least.
                spare = made.arena_bytes - made.arena_lower_bound_bytes
                fits = made.pool_bytes <= most_pool_bytes
                costs[selection] = Costs(made.pool_bytes - (spare if fits else 0), 0, 0)
        return costs[selection]

    costs: dict[Selection, Costs] = {}
    sizes = [0, *(layers[name].weight.size for name in reversed(plan.biases))]
    per_channel = {
        name: layers[name].weight.size // layers[name].weight.shape[-1] for name in ranked
    }
    values = Contributions(
        method="finetune",
        unit="weights trained",
        biases=tuple(np.cumsum(sizes).astype(float).tolist()),
        weights={
            layer: {count: float(per_channel[layer] * count) for count in _eighths(len(channels))}
            for layer, channels in ranked.items()
        },
    )
    state = weight_state_bytes(program)
    increments = {
        # A part of the whole layer's state, without what it is rounded up by.
        (layer, count): Increment(state[layer] * count // len(ranked[layer]), 0)
        for layer, gains in values.weights.items()
        for count in gains
    }
    found = search(values, cost, increments, Limits(most_pool_bytes), MOST_COSTED)
    if found is not None and not _trains_nothing(part(found.selection)):
        return part(found.selection)
    if not plan.head or not (plan.biases or plan.weights):
        return None
    of_head = (f"{graph.head.name}.weight", f"{graph.head.name}.bias")
    personal = tuple(name for name in plan.personal if name not in of_head)
    headless = dataclasses.replace(plan, head=False, personal=personal)
    return nearest_fitting(lower(graph, headless), most_pool_bytes)


def _eighths(channels: int) -> list[int]:
    return sorted({max(1, channels * step // PARTS) for step in range(1, PARTS + 1)})


def _trains_nothing(plan: Plan) -> bool:
    return not (plan.head or plan.biases or plan.weights)


def suggestion(program: Program, report: PlanReport) -> str:
    """What to train instead of ``program``, which ``report`` shows to exceed the SRAM limit.

    One sentence, with the plan as JSON to be saved in a file.
    """
    beside = report.sram_bytes.total - program.pool_bytes
    plan = nearest_fitting(program, report.sram_limit_bytes - beside)
    if plan is None:
        return f"No part of plan {report.name} fits."
    needed = beside + lower(program.graph, plan).pool_bytes
    return (
        f"The nearest plan to {report.name} that fits trains {describe(plan)} "
        f"({needed:,} bytes of SRAM): {json.dumps(_spec(plan, program))}"
    )


def _spec(plan: Plan, program: Program) -> dict[str, object]:
    """``plan`` as it stands in a file, without what is left to defaults."""
    order = [op.name for op in program.graph.convolutions]
    last = len(plan.biases)
    is_last = plan.biases == tuple(order[len(order) - last :])
    spec = PlanSpec(
        name=plan.name,
        biases=LastLayers(last=last) if is_last else list(plan.biases),
        weights=[
            WeightSpec(layer=item.layer, channels=[*runs_of(item.channels)])
            for item in plan.weights
        ],
        head=plan.head,
        state=plan.state,
        accumulate=plan.accumulate,
        momentum=plan.momentum_q8 / 256,
        loss=plan.loss,
    )
    written: dict[str, object] = spec.model_dump(mode="json", exclude_defaults=True)
    return written


def describe(plan: Plan) -> str:
    """The plan's trained parts in words."""
    parts = [f"{len(plan.biases)} biases"] if plan.biases else []
    parts += [f"{len(item.channels)} channels of {item.layer}" for item in plan.weights]
    parts += ["the head"] if plan.head else []
    return ", ".join(parts)
