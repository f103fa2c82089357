"""Which plans take part in the last choice: searched ones of several kinds, and the user's own."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
from codegen.plan_search.candidates import Selection
from codegen.plan_search.contributions import Contributions
from codegen.plan_search.costs import CostModel, Limits
from codegen.plan_search.handmade import late_of_a_kind, pruned
from codegen.plan_search.search import Found, search, value_of
from codegen.program.plans import Plan, PlanSpec, State, resolve

FRONT_POINTS = 8
FRONT_COSTED = 60
CHOSEN = "best"
"""What the plan that wins is called in the end."""
HIGHEST_SUM = "highest-sum"
HEAD_ONLY = "head-only"
BIASES_ONLY = "biases-only"
PRUNED = "pruned"
LEFT_OUT = 3
"""Layers without each of which another plan is searched, those that promise most first."""


def searched_plans(
    graph: Graph,
    contributions: Contributions,
    model: CostModel,
    limits: Limits,
    best: Found,
    progress: Progress,
) -> dict[str, Found]:
    """Plans by name, ``best``, that of the highest sum, before all; each only once.

    The best ones for less SRAM, the head alone, the biases of ``best`` alone, the best ones without
    a layer each of those that promise most, and regular ones (``handmade``).
    """
    return _distinct(
        {
            HIGHEST_SUM: best,
            **_front(contributions, model, limits, best, progress),
            **_others(contributions, model, limits, best, progress),
            **_handmade(graph, contributions, model, limits),
        }
    )


def given_plans(
    specs: Sequence[PlanSpec], graph: Graph, state: State, taken: Sequence[str]
) -> Iterator[tuple[PlanSpec, Plan]]:
    """The user's plans with names that aren't ``taken``. Those that name no state get ``state``.

    Raises PlanError for a plan that isn't one of ``graph``.
    """
    names = {*taken, CHOSEN}
    for spec in specs:
        changes = {"name": _free(spec.name, names)}
        if "state" not in spec.model_fields_set or spec.state == "auto":
            changes["state"] = state
        named = spec.model_copy(update=changes)
        names.add(named.name)
        yield named, resolve(named, graph)


def _free(name: str, names: set[str]) -> str:
    others = (f"{name[:60]}-{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], others) if free not in names)


def _front(
    contributions: Contributions,
    model: CostModel,
    limits: Limits,
    best: Found,
    progress: Progress,
) -> dict[str, Found]:
    """The best plans for less SRAM: name → plan, each better than all smaller ones."""
    least = model.of(Selection()).sram_bytes
    increments = model.increments([*contributions.weights])
    front: dict[str, Found] = {}
    value = contributions.biases[0]
    for point in range(1, FRONT_POINTS):
        room = least + (best.costs.sram_bytes - least) * point // FRONT_POINTS
        progress("searching smaller plans", point, FRONT_POINTS)
        tighter = dataclasses.replace(limits, sram_bytes=room)
        found = search(contributions, model.of, increments, tighter, FRONT_COSTED)
        if found is not None and value < found.value < best.value:
            front[f"sram-{-(-found.costs.sram_bytes // 1024)}k"] = found
            value = found.value
    progress("searching smaller plans", FRONT_POINTS, FRONT_POINTS)
    return front


def _others(
    contributions: Contributions,
    model: CostModel,
    limits: Limits,
    best: Found,
    progress: Progress,
) -> dict[str, Found]:
    """Plans of other kinds that may do better than ``best``, if gains don't add up."""
    depths = {HEAD_ONLY: 0, BIASES_ONLY: best.selection.depth}
    others = {
        name: Found(
            Selection(depth), contributions.biases[depth], model.of(Selection(depth)), optimal=False
        )
        for name, depth in depths.items()
    }
    gains = {layer: contributions.weights[layer][count] for layer, count in best.selection.channels}
    ranked = sorted(gains, key=lambda name: -gains[name])[:LEFT_OUT]
    for done, layer in enumerate(ranked):
        progress("searching other plans", done, len(ranked))
        left = {name: of for name, of in contributions.weights.items() if name != layer}
        without = dataclasses.replace(contributions, weights=left)
        found = search(without, model.of, model.increments([*left]), limits, FRONT_COSTED)
        if found is not None:
            name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"without-{layer}")[:64]
            others[name] = found
    progress("searching other plans", len(ranked), len(ranked))
    return others


def _handmade(
    graph: Graph, contributions: Contributions, model: CostModel, limits: Limits
) -> dict[str, Found]:
    def fits(selection: Selection) -> bool:
        return limits.allow(model.of(selection))

    order = {op.name: place for place, op in enumerate(graph.convolutions)}
    selections = {
        **late_of_a_kind(graph, contributions, fits),
        PRUNED: pruned(contributions, order, fits),
    }
    return {
        name: Found(
            selection, value_of(selection, contributions), model.of(selection), optimal=False
        )
        for name, selection in selections.items()
    }


def _distinct(found: Mapping[str, Found]) -> dict[str, Found]:
    """``found`` without what has been found under another name before."""
    by_selection: dict[Selection, str] = {}
    for name, item in found.items():
        by_selection.setdefault(item.selection, name)
    return {name: found[name] for name in by_selection.values()}
