"""From samples to plans that compile: within limits, resumable, the same for the same seed."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.compile import build_host_engine, compile_graph
from codegen.errors import BudgetError, PlanError
from codegen.firmware.boards import Board, load_board
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Graph
from codegen.plan_search import finalists, finals, finetune, pictures
from codegen.plan_search.costs import Round
from codegen.plan_search.finalists import HEAD_ONLY, HIGHEST_SUM
from codegen.plan_search.finals import Finals
from codegen.plan_search.planning import find_plans
from codegen.plan_search.proof import Bench, Linked, Proof
from codegen.plan_search.proposals import PlanningResult, Settings
from codegen.plan_search.race import Outcome, Rules
from codegen.plan_search.samples import Samples
from codegen.plan_search.training import Schedule
from codegen.program.plans import LastLayers, Plan, PlanSpec, WeightSpec, load_plan, resolve
from fleet.protocol.delta_coding import encode
from simulator.machines.measure import measure
from tests.codegen.random_graphs import random_graph

pytestmark = pytest.mark.slow

CDDL = Path(__file__).parents[3] / "fleet" / "protocol" / "tinyfleet.cddl"
BOARD = load_board("stm32f746")
FINALS = Finals(Rules(seeds=2), epochs=1, learning_rate=0.02)
SETTINGS = Settings(schedule=Schedule(epochs=1, learning_rate=0.02, seed=1), finals=FINALS)

FRESH = Settings(
    method="fisher",
    last=2,
    schedule=Schedule(epochs=1, learning_rate=0.05, seed=1),
    round=Round(40, 1),
    finals=FINALS,
)


def case() -> tuple[Graph, Samples]:
    graph, _ = random_graph(4)
    rng = np.random.default_rng(4)
    codes = rng.normal(
        rng.uniform(-60, 60, (120, 1, 1, 1)), 40, (120, *graph.tensors[graph.input].shape)
    )
    codes = codes.clip(-128, 127).astype(np.int8)
    brightness = codes.astype(int).mean(axis=(1, 2, 3))
    labels = np.argsort(np.argsort(brightness)) * graph.head.bias.size // len(codes)
    return graph, Samples(codes, labels)


def fresh_case(classes: int = 30) -> tuple[Graph, Samples]:
    """A new head of classes that are easily told apart: its first deltas are its largest."""
    graph, _ = random_graph(4)
    rng = np.random.default_rng(4)
    weight = rng.choice(graph.head.weight.ravel(), (classes, graph.head.weight.shape[1]))
    head = dataclasses.replace(graph.head, weight=weight, bias=np.zeros(classes, np.int32))
    labels = np.arange(120) % classes
    pictures = rng.uniform(-90, 90, (classes, *graph.tensors[graph.input].shape))
    codes = rng.normal(pictures[labels], 10).clip(-128, 127).astype(np.int8)
    return dataclasses.replace(graph, ops=(*graph.ops[:-1], head)), Samples(codes, labels)


def plans(
    settings: Settings, made: Any = case, board: Board = BOARD, **options: Any
) -> PlanningResult:
    graph, samples = made()
    return find_plans(
        graph,
        board,
        samples,
        settings,
        Bench(
            protocol_cddl=CDDL,
            toolchain=find_toolchain(),
            coded_bytes=lambda values: len(encode(values)),
            step_instructions=lambda folder: measure(folder).instructions.step,
        ),
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def _images_are_measured_once() -> Iterator[None]:
    """All searches here are for one model, board and set of samples, and link the same images."""
    known: dict[Any, Linked] = {}
    measure_image = Proof._measure

    def once(self: Proof, plan: Plan) -> Linked:
        key = (plan.id, self.board.sram.bytes, self.round, self.schedule, self.training.digest)
        if key not in known:
            known[key] = measure_image(self, plan)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proof, "_measure", once)
        patch.setattr(finalists, "FRONT_POINTS", 5)
        patch.setattr(finalists, "LEFT_OUT", 2)
        yield


@pytest.fixture(scope="module")
def unlimited() -> PlanningResult:
    return plans(SETTINGS)


def comparable(result: PlanningResult) -> Any:
    return (
        result.contributions,
        result.summed_gain,
        result.race,
        [
            (p.name, p.origin, p.plan, p.predicted, p.costs, p.linked.rounds, p.standing)
            for p in result.proposals
        ],
    )


@pytest.mark.parametrize("method", ["finetune", "fisher"])
def test_the_best_plan_is_within_all_limits_as_linked_and_trained(
    method: Any, unlimited: PlanningResult
) -> None:
    largest = unlimited.highest_sum
    sram = (largest.costs.sram_bytes + unlimited.proposals[0].costs.sram_bytes) // 2
    uplink = largest.costs.delta_bytes * 3 // 4
    instructions = largest.costs.instructions * 19 // 20
    settings = dataclasses.replace(
        SETTINGS,
        method=method,
        sram_bytes=sram,
        uplink_bytes=uplink,
        instructions=instructions,
        channel_choice="contribution",
    )
    result = plans(settings)
    for proposal in result.proposals:
        costs = proposal.costs
        assert proposal.linked.report.sram_bytes.total == costs.sram_bytes <= sram
        assert max(proposal.linked.rounds) <= costs.delta_bytes <= uplink
        assert costs.instructions <= instructions
    assert {weight.chosen_by for weight in result.best.spec.weights} <= {None, "fisher"}


def test_the_best_plan_is_the_smallest_that_ties_with_the_lowest_loss(
    unlimited: PlanningResult,
) -> None:
    finished = [p for p in unlimited.proposals if not p.standing.stopped]
    lowest = min(finished, key=lambda p: p.standing.mean_loss)
    assert unlimited.race.leader == lowest.origin
    tied = [p for p in finished if p.standing.ties]
    assert unlimited.best == min(tied, key=lambda p: p.costs.sram_bytes)
    assert all(len(p.standing.outcomes) == FINALS.rules.seeds for p in finished)
    gains = [p.predicted for p in unlimited.proposals if p.predicted is not None]
    assert unlimited.highest_sum.predicted == max(gains) > 0
    assert len({p.plan.id for p in unlimited.proposals}) == len(unlimited.proposals) > 3


def losing(condition: Callable[[Plan], bool]) -> Callable[..., Outcome]:
    """What replaces training: the plans of which this is true do badly, all others well."""

    def trained(self: Any, name: str, schedule: Schedule) -> Outcome:
        loss = 1.0 + condition(self._plans[name])
        return Outcome((0, 1, 2), (loss, loss + 0.1, loss), (True, False, True))

    return trained


def test_a_sum_that_does_not_add_up_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    several = losing(lambda plan: len(plan.weights) > 1)
    monkeypatch.setattr(finals._Track, "_one", several)
    result = plans(SETTINGS)
    assert len(result.highest_sum.plan.weights) > 1
    assert len(result.best.plan.weights) <= 1
    assert result.best.predicted is not None
    assert result.highest_sum.predicted is not None
    assert result.best.predicted < result.highest_sum.predicted
    assert HIGHEST_SUM in result.plan_file()["plans"]
    assert result.best.linked.report.id == result.best.plan.id


def test_a_plan_of_the_users_own_is_chosen_where_it_does_best(
    monkeypatch: pytest.MonkeyPatch, unlimited: PlanningResult
) -> None:
    graph, _ = case()
    own = PlanSpec(name="mine", biases=[graph.convolutions[-2].name])
    wanted = resolve(own, graph).id
    monkeypatch.setattr(finals._Track, "_one", losing(lambda plan: plan.id != wanted))
    head = next(p for p in unlimited.proposals if p.origin == HEAD_ONLY)
    room = head.costs.sram_bytes + 2_000
    large = PlanSpec(
        name="large",
        biases=LastLayers(last=len(graph.convolutions)),
        weights=[WeightSpec(layer=op.name) for op in graph.convolutions],
    )
    same = head.spec.model_copy(update={"name": "same"})
    given = (own, large, same)
    result = plans(dataclasses.replace(SETTINGS, given=given, sram_bytes=room))
    assert (result.best.origin, result.best.plan.id) == ("mine", wanted)
    assert result.best.predicted is None
    assert result.plan_file()["plans"]["best"]["biases"] == [graph.convolutions[-2].name]
    # One that is too large is left out by name, one that was found as well isn't trained twice.
    assert "large" in result.left_out
    assert [p.plan.id for p in result.proposals].count(head.plan.id) == 1


def test_smaller_plans_promise_less(unlimited: PlanningResult) -> None:
    front = [p for p in unlimited.proposals if p.name.startswith("sram-")]
    assert front
    gains = [p.predicted or 0.0 for p in front]
    assert [p.costs.sram_bytes for p in front] == sorted(p.costs.sram_bytes for p in front)
    assert gains == sorted(gains)
    assert gains[-1] < (unlimited.highest_sum.predicted or 0.0)


def test_options_are_measured_beside_the_best_plan(unlimited: PlanningResult) -> None:
    costs = {v.option: v.costs for v in unlimited.variants if v.costs}
    assert set(costs) == {"state int8-stochastic", "accumulate 8", "accumulate 32", "momentum 0.9"}
    assert len(costs) == len(unlimited.variants)
    best = unlimited.best.costs
    assert costs["state int8-stochastic"].sram_bytes <= best.sram_bytes
    assert best.sram_bytes < costs["momentum 0.9"].sram_bytes
    # Each has kernels of its own; an update by more samples is paid more seldom.
    assert len({best.instructions, *(of.instructions for of in costs.values())}) == 5
    assert costs["accumulate 32"].instructions < costs["accumulate 8"].instructions


def round_of_a_device(engine: HostEngine, samples: Samples, seed: int) -> int:
    """Bytes of the delta of a round on samples that were drawn otherwise than by the search."""
    rng = np.random.default_rng([99, seed])
    chosen = rng.choice(len(samples), FRESH.round.samples, replace=False)
    engine.load()
    for _ in range(FRESH.round.epochs):
        for index in rng.permutation(chosen):
            rate = round(FRESH.schedule.learning_rate * 2**20)
            engine.train_step(samples.codes[index], int(samples.labels[index]), rate, 1_000 + seed)
    return len(encode(engine.delta()))


def test_deltas_of_first_rounds_of_the_compiled_plan_keep_to_the_limit(tmp_path: Path) -> None:
    graph, samples = fresh_case()
    free = plans(FRESH, fresh_case)
    smallest, largest = free.proposals[0].costs.delta_bytes, free.highest_sum.costs.delta_bytes
    limit = (smallest + largest) // 2
    result = plans(dataclasses.replace(FRESH, uplink_bytes=limit), fresh_case)
    bundle = compile_graph(
        graph,
        BOARD,
        [p.plan for p in result.proposals],
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=CDDL,
        toolchain=find_toolchain(),
    )
    library = build_host_engine(bundle, tmp_path / "engine.so")
    for proposal in result.proposals:
        engine = HostEngine(library, proposal.plan.id)
        rounds = [round_of_a_device(engine, samples, seed) for seed in range(8)]
        assert max(rounds) <= proposal.costs.delta_bytes <= limit
        # Nor is it far above what rounds take.
        assert proposal.costs.delta_bytes < 1.2 * max(rounds)


def test_every_plan_shown_takes_what_it_takes_compiled_alone(
    unlimited: PlanningResult, tmp_path: Path
) -> None:
    graph, _ = case()
    for number, proposal in enumerate(unlimited.proposals[1::3]):
        bundle = compile_graph(
            graph,
            BOARD,
            [proposal.plan],
            onnx_sha256="00" * 32,
            out=tmp_path / str(number),
            protocol_cddl=CDDL,
            toolchain=find_toolchain(),
        )
        assert measure(bundle.path).instructions.step == proposal.costs.instructions
        assert bundle.report.plans[0].sram_bytes.total == proposal.costs.sram_bytes


def test_where_the_head_is_too_much_a_plan_without_it_is_named_that_compiles(
    tmp_path: Path,
) -> None:
    wide = functools.partial(fresh_case, 200)
    graph, _ = wide()
    with pytest.raises(BudgetError, match=r"head alone needs [\d,]+ bytes of SRAM") as caught:
        plans(dataclasses.replace(SETTINGS, sram_bytes=9_000), wide)
    needed = str(caught.value).partition("head alone needs ")[2].partition(" bytes")[0]
    limit = int(needed.replace(",", "")) - 8
    with pytest.raises(BudgetError, match=r"head alone needs .* bytes of SRAM, .* instr") as caught:
        plans(dataclasses.replace(SETTINGS, sram_bytes=limit), wide)
    shown = str(caught.value).partition("isn't measured: ")[2].partition(" needs ")[0]
    spec = PlanSpec.model_validate_json(shown)
    assert not spec.head
    bundle = compile_graph(
        graph,
        BOARD.model_copy(update={"sram_limit_bytes": limit}),
        [resolve(spec, graph)],
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=CDDL,
        toolchain=find_toolchain(),
    )
    assert bundle.report.plans[0].fits


def test_what_a_head_larger_than_the_boards_sram_needs_is_said(unlimited: PlanningResult) -> None:
    needed = unlimited.proposals[0].costs.sram_bytes
    sram = BOARD.sram.model_copy(update={"bytes": needed - 8})
    small = BOARD.model_copy(update={"sram": sram, "sram_limit_bytes": 9_000})
    needs = rf"fits 9,000 bytes of SRAM .* needs {needed:,} bytes of SRAM, of which stm32f746 has"
    with pytest.raises(BudgetError, match=needs):
        plans(dataclasses.replace(SETTINGS, last=0), board=small)


def test_the_plan_file_compiles_and_gives_the_plans_found(
    unlimited: PlanningResult, tmp_path: Path
) -> None:
    graph, _ = case()
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(unlimited.plan_file()))
    found = [resolve(load_plan(f"{file}#{p.name}"), graph) for p in unlimited.proposals]
    assert [plan.id for plan in found] == [p.plan.id for p in unlimited.proposals]
    bundle = compile_graph(
        graph,
        BOARD,
        found,
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=CDDL,
        toolchain=find_toolchain(),
    )
    for report, proposal in zip(bundle.report.plans, unlimited.proposals, strict=True):
        assert report.sram_bytes.arena + report.sram_bytes.state == (
            proposal.costs.sram_bytes - unlimited.proposals[0].costs.sram_bytes
            + bundle.report.plans[0].sram_bytes.arena + bundle.report.plans[0].sram_bytes.state
        )  # fmt: skip


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(
    unlimited: PlanningResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, of: int) -> None:
        if stage == "training candidates" and done == 5:
            raise Killed

    journal = tmp_path / "journal.jsonl"
    with pytest.raises(Killed):
        plans(SETTINGS, journal=journal, progress=kill)
    trained: list[int] = []
    train = finetune.train
    monkeypatch.setattr(finetune, "train", lambda *args: (trained.append(1), train(*args)))
    resumed = plans(SETTINGS, journal=journal)
    assert comparable(resumed) == comparable(unlimited)
    first = len(trained)
    assert first > 0
    assert comparable(plans(SETTINGS, journal=journal)) == comparable(unlimited)
    assert len(trained) == first


def test_limits_that_not_even_the_head_keeps_are_refused_with_its_needs() -> None:
    with pytest.raises(BudgetError, match=r"no plan fits 5,000 bytes of SRAM on board stm32f746"):
        plans(dataclasses.replace(SETTINGS, sram_bytes=5_000))
    with pytest.raises(BudgetError, match=r", 3 bytes of delta per round.*head alone needs"):
        plans(dataclasses.replace(SETTINGS, uplink_bytes=3))
    # What is asked for beyond the board isn't there.
    with pytest.raises(BudgetError, match=r"no plan fits 262,144 bytes of SRAM, 3 bytes of delta"):
        plans(dataclasses.replace(SETTINGS, sram_bytes=10**9, uplink_bytes=3))
    with pytest.raises(BudgetError, match=r", 10 instructions per step"):
        plans(dataclasses.replace(SETTINGS, instructions=10))


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(PlanError, match=r"last 99 layers .* the model has \d convolutions"):
        plans(dataclasses.replace(SETTINGS, last=99))


def test_layers_that_are_not_analysed_are_not_trained() -> None:
    graph, _ = case()
    result = plans(dataclasses.replace(SETTINGS, last=2))
    analysed = {op.name for op in graph.convolutions[-2:]}
    assert set(result.contributions.weights) == analysed
    for proposal in result.proposals:
        assert {*proposal.plan.biases, *(w.layer for w in proposal.plan.weights)} <= analysed


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_pictures_are_drawn_the_same_each_time(
    ending: str, unlimited: PlanningResult, tmp_path: Path
) -> None:
    drawn = []
    for index in range(2):
        for figure in (
            pictures.contributions_picture(unlimited.contributions),
            pictures.accuracy_picture(unlimited),
        ):
            pictures.save(figure, tmp_path / f"{index}{ending}")
            drawn.append((tmp_path / f"{index}{ending}").read_bytes())
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]
