"""Runs of one data set: every plan by every method with every seed, kept in a JSON file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.frozen import trained_tail
from benchmarks.accuracy.network import Network
from benchmarks.accuracy.samples import Samples
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.training import (
    Run,
    Schedule,
    scaled,
    train_network,
    train_on_device_arithmetic,
    truncated,
    unscaled,
)
from codegen.graph.ir import Graph
from codegen.program.plans import Plan, resolve

SEARCHED = 4.0
"""Ratio of neighbouring learning rates where the best one is searched for."""
RATES = 4


@dataclass(frozen=True)
class Method:
    """A way to train; ``searches`` if it gets its best learning rate instead of the schedule's."""

    name: str
    title: str
    train: Callable[[Graph, Plan, Samples, Schedule, int], Run]
    searches: bool = False


def _float(graph: Graph, plan: Plan, samples: Samples, schedule: Schedule, seed: int) -> Run:
    network = Network(graph, plan, rounded=False)
    return train_network(network, scaled, samples, schedule, seed)


def _unscaled(graph: Graph, plan: Plan, samples: Samples, schedule: Schedule, seed: int) -> Run:
    network = Network(graph, plan, rounded=True)
    return train_network(network, unscaled, samples, schedule, seed)


def _tiny_engine(graph: Graph, plan: Plan, samples: Samples, schedule: Schedule, seed: int) -> Run:
    network = Network(graph, plan, rounded=True, head_bits=8, codes_in_gradient=True)
    return train_network(network, truncated, samples, schedule, seed, single=True)


def _int8_state(graph: Graph, plan: Plan, samples: Samples, schedule: Schedule, seed: int) -> Run:
    lean = replace(plan, state="int8-stochastic")
    return train_on_device_arithmetic(graph, lean, samples, schedule, seed)


METHODS = {
    method.name: method
    for method in (
        Method("float", "float SGD", _float),
        Method("device", "device arithmetic", train_on_device_arithmetic),
        Method("int8-state", "device, int8 state", _int8_state),
        Method("tinyengine", "TinyEngine's arithmetic, best rate", _tiny_engine, searches=True),
        Method("unscaled", "no QAS, best rate", _unscaled, searches=True),
    )
}


class Results:
    """The runs of a data set in a JSON file, written after each; known ones aren't repeated."""

    def __init__(self, path: Path, task: Task, schedule: Schedule) -> None:
        self.path = path
        head = {"data set": task.name, "title": task.title, "schedule": asdict(schedule)}
        self.content: dict[str, Any] = {**head, "rates": {}, "runs": []}
        if path.exists():
            kept = json.loads(path.read_text("utf-8"))
            if {key: kept.get(key) for key in head} != head:
                raise SystemExit(f"{path} has runs of another schedule; move it away or use --out")
            self.content = kept

    @property
    def runs(self) -> list[dict[str, Any]]:
        """One entry per plan, method, seed and owner of samples."""
        runs: list[dict[str, Any]] = self.content["runs"]
        return runs

    def has(self, **key: Any) -> bool:
        """Whether there is a run with these entries."""
        return any(all(run[k] == v for k, v in key.items()) for run in self.runs)

    def add(self, run: Run, **key: Any) -> None:
        """Keeps ``run`` on disk."""
        self.runs.append({**key, **asdict(run), "end": run.end})
        self.runs.sort(key=lambda r: (r["plan"], r["method"], r["seed"], r["who"]))
        self.write()

    def write(self) -> None:
        """Writes one run per line, so that differences can be read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = {key: value for key, value in self.content.items() if key != "runs"}
        lines = ",\n".join("  " + json.dumps(run) for run in self.runs)
        text = json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n'
        # Runs take hours: a kill while writing must not cost the ones before.
        replacement = self.path.with_name(self.path.name + ".new")
        replacement.write_text(text, "utf-8")
        replacement.replace(self.path)


def run_study(
    task: Task, plans: Sequence[str], methods: Sequence[str], seeds: int, results: Results
) -> None:
    """Adds what is missing to ``results``, a line of text per run.

    Raises SystemExit for a plan that the data set doesn't have.
    """
    schedule = Schedule(**results.content["schedule"])
    for seed in range(seeds):
        graph, cases = task.prepare(seed)
        known = task.plans(graph)
        for name in plans:
            if name not in known:
                raise SystemExit(f"{task.name} has no plan {name!r}; it has {', '.join(known)}")
            plan = resolve(known[name], graph)
            for method in (METHODS[method] for method in methods):
                for who, samples in cases.items():
                    key = {"plan": name, "method": method.name, "seed": seed, "who": who}
                    if results.has(**key):
                        continue
                    tail, arriving = trained_tail(graph, plan, samples)
                    case = _Case(method, tail, plan, arriving, schedule)
                    rate = schedule.rate
                    if method.searches:
                        rate = _searched(case, f"{method.name} {name}", results)
                    _one(case, rate, results, key)


@dataclass(frozen=True)
class _Case:
    """What is trained on what, and how; only rates and seeds are still open."""

    method: Method
    graph: Graph
    plan: Plan
    samples: Samples
    schedule: Schedule

    def train(self, rate: float, seed: int) -> Run:
        schedule = replace(self.schedule, rate=rate)
        return self.method.train(self.graph, self.plan, self.samples, schedule, seed)


def _one(case: _Case, rate: float, results: Results, key: dict[str, Any]) -> None:
    started = time.perf_counter()
    run = case.train(rate, key["seed"])
    seconds = time.perf_counter() - started
    results.add(run, **key, rate=rate, seconds=round(seconds, 1))
    diverged = " diverged" if run.diverged else ""
    print(
        f"{key['plan']:8} {key['method']:11} seed {key['seed']} {key['who']}: "
        f"{100 * run.start:.1f} to {100 * run.end:.1f} %{diverged}, loss {run.loss[-1]:.4f}, "
        f"rate {rate:g}, {seconds:.0f} s",
        flush=True,
    )


def _searched(case: _Case, key: str, results: Results) -> float:
    """The rate of the best test accuracy with the first seed: the most that can be made of it.

    ``results`` keeps what was tried, from the schedule's rate up, as ``key``.
    """
    rates: dict[str, dict[str, float]] = results.content["rates"]
    if key not in rates:
        tried = {}
        for power in range(RATES):
            rate = case.schedule.rate * SEARCHED**power
            run = case.train(rate, 0)
            tried[f"{rate:g}"] = run.end
            print(f"{key}: rate {rate:g} gives {100 * run.end:.1f} %", flush=True)
        rates[key] = tried
        results.write()
    return float(max(rates[key], key=lambda rate: rates[key][rate]))
