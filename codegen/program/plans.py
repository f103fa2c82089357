"""Update plans: which values of a model a device trains, and how.

The file format is described in docs/specification/bundle.md. A plan file is parsed without
knowledge of a model (``load_plan``), then resolved against a graph (``resolve``); the result has
everything spelt out, and its id is the SHA-256 of that canonical form.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codegen.errors import PlanError
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head

FORMAT: Literal["tinyfleet-plan/1"] = "tinyfleet-plan/1"
State = Literal["q8.8", "int8-stochastic"]

# Part of the parameters that the default middle plan trains. Coded deltas took 5 … 8 bits per
# value on the digits; at 6.5 % and 10 bits with framing, an uplink stays below 1/50 of dense fp32.
MIDDLE_PART = 0.065
LEAST_CHANNELS = 4
MOST_ACCUMULATED = 256
DEFAULT_NAMES = ("small", "middle", "full")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LastLayers(_Strict):
    """The last ``last`` convolutions in execution order."""

    last: int = Field(ge=0)


class WeightSpec(_Strict):
    """Channels of the last axis of a layer's weight (input channels; depthwise: channels).

    Either a range, or ``channels``: positions and runs [start, count] in any order.
    """

    layer: str
    start: int = Field(default=0, ge=0)
    count: Literal["all"] | int = "all"
    channels: list[int | tuple[int, int]] | None = None
    chosen_by: str | None = None
    """How the channels were chosen (``weight-norm``, ``fisher`` …): for readers, not in the id."""


class PlanSpec(_Strict):
    """An update plan as it stands in a file."""

    format: Literal["tinyfleet-plan/1"] = FORMAT
    name: str = Field(default="plan", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    biases: LastLayers | list[str] = Field(default_factory=list)
    weights: list[WeightSpec] = Field(default_factory=list)
    head: bool = True
    state: Literal["q8.8", "int8-stochastic", "auto"] = "q8.8"
    """``auto``: the finest that fits the board."""
    accumulate: int = Field(default=1, ge=1, le=MOST_ACCUMULATED)
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    loss: str | None = None
    """The model's own where left out: no plan can have another."""
    personal: list[str] = Field(default_factory=list)
    """What stays on the device in a campaign that personalizes: ``head``, ``biases``, layers (all
    that is trained of them), or tensors such as ``LAYER.bias``."""


@dataclass(frozen=True)
class WeightUpdate:
    """The trained positions of the last axis of a layer's weight, ascending."""

    layer: str
    channels: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of trained channels."""
        return len(self.channels)


def runs_of(channels: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending positions as runs (start, count)."""
    runs: list[tuple[int, int]] = []
    for channel in channels:
        if runs and sum(runs[-1]) == channel:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((channel, 1))
    return runs


@dataclass(frozen=True)
class Plan:
    """A plan resolved against a graph: layers and channels in execution order.

    ``state`` says how int8 weights are kept while they are trained; the head is int16 (q8.8)
    with either. A step is that of the mean gradient of ``accumulate`` samples; ``momentum_q8`` is
    the momentum times 256.
    """

    name: str
    biases: tuple[str, ...]
    weights: tuple[WeightUpdate, ...]
    head: bool
    state: State
    accumulate: int = 1
    momentum_q8: int = 0
    loss: str = "cross-entropy"
    personal: tuple[str, ...] = ()
    """Names of the tensors that a personalizing campaign leaves on the device."""

    @property
    def keeps_velocity(self) -> bool:
        """Whether every trained value has a 32-bit sum of changes that aren't applied yet."""
        return self.accumulate > 1 or self.momentum_q8 > 0

    def canonical(self) -> dict[str, Any]:
        """Everything but the name, spelt out: what the id stands for.

        Without personal tensors it doesn't speak of them: ids of before there were any stay.
        """
        return {
            "format": FORMAT,
            "biases": list(self.biases),
            "weights": [
                {"layer": item.layer, "channels": [list(run) for run in runs_of(item.channels)]}
                for item in self.weights
            ],
            "head": self.head,
            "state": self.state,
            "accumulate": self.accumulate,
            "momentum": self.momentum_q8 / 256,
            "loss": self.loss,
            **({"personal": list(self.personal)} if self.personal else {}),
        }

    @property
    def id(self) -> str:
        """SHA-256 (hex) of the canonical plan's JSON with sorted keys and no spaces."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_REMARKS = {"model", "conv_count", "index_note", "select"}
"""What published collections of plans say about themselves."""


def load_plan(spec: str) -> PlanSpec:
    """Reads ``FILE``, or plan ``NAME`` of ``FILE#NAME``.

    Raises PlanError if the file isn't there or isn't a plan, or names no such plan.
    """
    file, _, name = spec.partition("#")
    try:
        content = json.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        remedy = "give FILE or FILE#NAME"
        if spec.lstrip().startswith("{"):
            remedy = "a plan is given as a file: save this JSON and give its name"
        elif spec in DEFAULT_NAMES:
            remedy += (
                f"; the compiler's own plans ({', '.join(DEFAULT_NAMES)}) are all made where no "
                "--plan is given"
            )
        raise PlanError(f"plan file {file} can't be read: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise PlanError(f"plan file {file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"plan file {file} holds no plan: an object is expected")
    if "plans" not in content:
        if name:
            raise PlanError(f"{file} holds one plan, not several; leave out '#{name}'")
        return parse_plan(content, file)
    plans = content["plans"]
    if isinstance(plans, dict):
        # Published collections carry remarks beside the plans.
        plans = {key: value for key, value in plans.items() if not key.startswith("_")}
    extra = sorted(set(content) - {"plans", "format", *_REMARKS})
    if extra or not isinstance(plans, dict) or not plans:
        raise PlanError(
            f"{file}: a file of several plans is {{'plans': {{'NAME': {{...}}}}}}"
            + (f"; unknown key {extra[0]!r}" if extra else "")
        )
    known = ", ".join(sorted(plans))
    if not name:
        raise PlanError(f"{file} holds several plans ({known}); pick one with {file}#NAME")
    if name not in plans:
        raise PlanError(f"{file} has no plan {name!r}{_nearest(name, list(plans))}; it has {known}")
    if not isinstance(plans[name], dict):
        raise PlanError(f"{file}#{name}: an object is expected")
    if "bias_layers" in plans[name]:
        return _published(name, plans[name], f"{file}#{name}")
    return parse_plan({"name": name, **plans[name]}, f"{file}#{name}")


class _PublishedWeight(BaseModel):
    model_config = ConfigDict(frozen=True)

    layer: str
    kept: int
    kept_index: list[int] | Literal["all"]


class _PublishedPlan(BaseModel):
    """An update plan as MCUNet's authors publish it, in terms of layer names."""

    model_config = ConfigDict(frozen=True)

    bias_layers: list[str]
    weight_layers: list[_PublishedWeight]


def _published(name: str, content: dict[str, Any], origin: str) -> PlanSpec:
    try:
        plan = _PublishedPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise PlanError(f"{origin}: {place}: {first['msg']}") from error
    weights = [
        WeightSpec(layer=item.layer)
        if item.kept_index == "all"
        else WeightSpec(layer=item.layer, channels=[*item.kept_index], chosen_by="weight-norm")
        for item in plan.weight_layers
        if item.kept > 0
    ]
    return PlanSpec(name=name, biases=plan.bias_layers, weights=weights, state="auto")


def parse_plan(content: dict[str, Any], origin: str) -> PlanSpec:
    """A plan from JSON; ``origin`` names it in errors. Raises PlanError for what it can't be."""
    try:
        return PlanSpec.model_validate(content)
    except ValidationError as error:
        fields = list(PlanSpec.model_fields)
        problems = []
        for entry in error.errors():
            place = ".".join(str(part) for part in entry["loc"] if part not in _UNION_BRANCHES)
            message = entry["msg"]
            if entry["type"] == "extra_forbidden":
                message = f"unknown key{_nearest(str(entry['loc'][-1]), fields)}"
            problems.append(f"{place or 'plan'}: {message}")
        raise PlanError(f"{origin}: {'; '.join(dict.fromkeys(problems))}") from error


_UNION_BRANCHES = {"LastLayers", "list[str]", "literal['all']", "int", "tuple[int, int]"}


def resolve(plan_spec: PlanSpec, graph: Graph) -> Plan:
    """Spells out ``plan_spec`` for ``graph``.

    Raises PlanError for layers that aren't there (with the nearest name), ranges out of bounds,
    a layer named twice, settings that aren't supported, and a plan that trains nothing.
    """
    name = f"plan {plan_spec.name!r}"
    if graph.ending.loss == "none":
        raise PlanError(f"{name}: a model without a loss isn't trained; leave out the plan")
    layers = {op.name: op for op in graph.convolutions}
    order = list(layers)
    loss = graph.ending.loss
    if plan_spec.loss not in (None, loss):
        raise PlanError(
            f"{name}: loss {plan_spec.loss!r} isn't supported; that of this model is {loss!r} "
            "(leave it out)"
        )
    if isinstance(plan_spec.biases, LastLayers):
        last = plan_spec.biases.last
        if last > len(order):
            raise PlanError(
                f"{name}: biases of the last {last} layers are asked for, "
                f"the model has {len(order)} convolutions"
            )
        biases = order[len(order) - last :]
    else:
        for layer in plan_spec.biases:
            _known(layer, order, graph, name)
        biases = sorted(plan_spec.biases, key=order.index)
        _once(biases, f"{name}: biases")
    weights = []
    for item in plan_spec.weights:
        _known(item.layer, order, graph, name)
        channels = layers[item.layer].weight.shape[-1]
        weights.append(WeightUpdate(item.layer, _channels(item, channels, name)))
    weights.sort(key=lambda item: order.index(item.layer))
    _once([item.layer for item in weights], f"{name}: weights")
    has_head = isinstance(graph.ending, Head)
    head = plan_spec.head and has_head
    if not biases and not weights and not head:
        remedy = "name biases or weights" + (", or set head to true" if has_head else "")
        raise PlanError(f"{name} trains nothing: {remedy}")
    plan = Plan(
        name=plan_spec.name,
        biases=tuple(biases),
        weights=tuple(weights),
        head=head,
        state="q8.8" if plan_spec.state == "auto" else plan_spec.state,
        accumulate=plan_spec.accumulate,
        momentum_q8=min(round(plan_spec.momentum * 256), 255),
        loss=loss,
    )
    return replace(plan, personal=_personal(plan_spec.personal, graph, plan, name))


def _personal(marks: Sequence[str], graph: Graph, plan: Plan, name: str) -> tuple[str, ...]:
    """The tensors that ``marks`` name, in the order of the delta."""
    trained = trained_tensors(graph, plan)
    head = graph.ending.name
    of_head = (f"{head}.bias", f"{head}.weight")
    chosen: set[str] = set()
    for mark in marks:
        if mark in ("head", head, *of_head):
            # One step updates both.
            found = [tensor for tensor in trained if tensor in of_head]
        elif mark == "biases":
            found = [f"{layer}.bias" for layer in plan.biases]
        else:
            found = [tensor for tensor in trained if mark in (tensor, tensor.rpartition(".")[0])]
        if not found:
            raise PlanError(
                f"{name}: personal names {mark!r}, of which the plan trains nothing"
                f"{_nearest(mark, trained)}; name head, biases, a layer or a tensor that it trains"
            )
        chosen |= set(found)
    if chosen and len(chosen) == len(trained):
        raise PlanError(
            f"{name}: all that it trains is personal, nothing would be left to learn together; "
            "name fewer under personal"
        )
    return tuple(tensor for tensor in trained if tensor in chosen)


def _channels(item: WeightSpec, channels: int, plan: str) -> tuple[int, ...]:
    """The positions that ``item`` names, ascending, among ``channels``."""
    if item.channels is not None:
        where = f"{plan}: layer {item.layer!r}"
        if item.start != 0 or item.count != "all":
            raise PlanError(f"{where} has a list of channels and a range; give one of them")
        listed: list[int] = []
        for entry in item.channels:
            start, count = entry if isinstance(entry, tuple) else (entry, 1)
            if start < 0 or start + count > channels:
                outside = start if start < 0 else start + count - 1
                raise PlanError(f"{where} has channels 0 … {channels - 1}, not {outside}")
            listed += range(start, start + count)
        chosen = tuple(sorted(set(listed)))
        if not chosen or len(chosen) < len(listed):
            problem = "names a channel twice" if chosen else "has an empty list of channels"
            raise PlanError(f"{where} {problem}; list each trained channel once")
        return chosen
    count = channels - item.start if item.count == "all" else item.count
    if count < 1 or item.start + count > channels:
        raise PlanError(
            f"{plan}: layer {item.layer!r} has channels 0 … {channels - 1}; the range of "
            f"{item.count} from {item.start} isn't within them"
        )
    return tuple(range(item.start, item.start + count))


def default_plans(graph: Graph) -> list[Plan]:
    """Plans in three sizes, named as in ``DEFAULT_NAMES``.

    Small: the biases of the last third of the layers, and the head. Middle: the biases of the
    last two thirds, the head, and input channels of the last pointwise weights until about 6.5 %
    of the parameters are trained. Full: every layer. In very small models two of them can train
    the same values; then only the smaller one is returned. The head of an autoencoder is as
    large as a layer gets: only the full plan trains it. Outputs that are a tensor have no head.
    Without a loss there is one plan, which trains nothing.
    """
    ending = graph.ending
    if ending.loss == "none":
        return [Plan("infer", (), (), False, "q8.8", loss="none")]
    order = [op.name for op in graph.convolutions]
    third = -(-len(order) // 3)
    loss, has_head = ending.loss, isinstance(ending, Head)
    head = not ending.reconstructs
    small = Plan("small", tuple(order[len(order) - third :]), (), head, "q8.8", loss=loss)
    middle_biases = tuple(order[max(0, len(order) - 2 * third) :])
    middle_weights = _middle_weights(graph, middle_biases, head)
    middle = Plan("middle", middle_biases, middle_weights, head, "q8.8", loss=loss)
    everything = tuple(
        WeightUpdate(op.name, tuple(range(op.weight.shape[-1]))) for op in graph.convolutions
    )
    full = Plan("full", tuple(order), everything, has_head, "q8.8", loss=loss)
    distinct: dict[str, Plan] = {}
    for plan in (small, middle, full):
        distinct.setdefault(plan.id, plan)
    return list(distinct.values())


def trained_tensors(graph: Graph, plan: Plan) -> list[str]:
    """Names of the tensors of which ``plan`` trains anything, in the order of its delta."""
    head = graph.ending.name
    return [
        *(f"{layer}.bias" for layer in plan.biases),
        *(f"{update.layer}.weight" for update in plan.weights),
        *((f"{head}.bias", f"{head}.weight") if plan.head else ()),
    ]


def parameter_count(graph: Graph) -> int:
    """Number of weights and biases of the model."""
    layers = [op for op in graph.ops if isinstance(op, (Conv, DepthwiseConv, Head))]
    return sum(op.weight.size + op.bias.size for op in layers)


def _middle_weights(
    graph: Graph, biases: tuple[str, ...], with_head: bool
) -> tuple[WeightUpdate, ...]:
    trained = graph.head.weight.size + graph.head.bias.size if with_head else 0
    trained += sum(op.bias.size for op in graph.convolutions if op.name in biases)
    budget = MIDDLE_PART * parameter_count(graph) - trained
    pointwise = [
        op for op in graph.convolutions if isinstance(op, Conv) and op.weight.shape[1:3] == (1, 1)
    ]
    # Every layer that trains keeps its input: better many channels of one layer than a few of each.
    ranges = []
    for op in reversed(pointwise):
        outputs, channels = op.weight.shape[0], op.weight.shape[-1]
        count = min(channels, int(budget / outputs))
        if count >= min(LEAST_CHANNELS, channels):
            ranges.append(WeightUpdate(op.name, tuple(range(count))))
            budget -= count * outputs
    return tuple(reversed(ranges))


def _known(layer: str, order: Sequence[str], graph: Graph, plan: str) -> None:
    if layer in order:
        return
    if isinstance(graph.ending, Head) and layer == graph.ending.name:
        raise PlanError(f'{plan}: {layer!r} is the head; train it with "head": true')
    raise PlanError(
        f"{plan}: the model has no layer {layer!r}{_nearest(layer, order)}; "
        f"its convolutions are {', '.join(order)}"
    )


def _once(layers: Sequence[str], where: str) -> None:
    twice = next((layer for layer in layers if layers.count(layer) > 1), None)
    if twice is not None:
        raise PlanError(f"{where} name layer {twice!r} twice; name it once")


def _nearest(word: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (did you mean {match[0]!r}?)" if match else ""
