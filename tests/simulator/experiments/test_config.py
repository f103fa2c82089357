"""What an experiment's file may say, and what is said about one that says something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.errors import ExperimentError
from simulator.experiments import ExperimentConfig
from simulator.experiments.strategies import Campaign, LocalOnly
from tests.simulator.experiments import tiny


def test_strategies_have_the_defaults_and_their_own() -> None:
    config = ExperimentConfig.parse(tiny.TEXT)
    alone, fedavg = config.strategies["alone"], config.strategies["fedavg"]
    assert isinstance(alone, LocalOnly)
    assert (alone.rounds, alone.learning_rate, alone.plan) == (2, 0.02, "small")
    assert isinstance(fedavg, Campaign)
    assert fedavg.campaign(5, ()).rounds == 2


def test_what_a_run_keeps_of_a_file_is_the_same_experiment() -> None:
    config = ExperimentConfig.parse(tiny.TEXT)
    assert ExperimentConfig.of(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"world": 3}, "world"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"seeds": [2**32]}, "seeds.0"),
        ({"seed": [1]}, "seed:"),
        ({"name": "../up"}, "name"),
        ({"defaults": [1]}, "defaults: they are"),
        ({"strategies": {}}, "strategies"),
        ({"strategies": [1]}, "strategies"),
        ({"strategies": {"a": 3}}, "strategies.a: a strategy is"),
        ({"strategies": {"../up": {}}}, r"strategies\.\.\./up"),
        ({"strategies": {3: {}}}, "strategies.3"),
        ({"strategies": {"a": {"kind": "magic"}}}, "no strategy magic; there are campaign"),
        ({"strategies": {"a": {"kind": "central"}}}, "a: kind: .*did you mean centralized?"),
        ({"strategies": {"a": {"kind": ["campaign"]}}}, "a: kind"),
        ({"strategies": {"a": {"kind": "local-only"}}}, "a: plan: it is missing"),
        ({"strategies": {"a": {"roundz": 2}}}, "a: roundz: .*did you mean rounds?"),
        ({"strategies": {"a": {"asynchronous": {"bufer": 2}}}}, "asynchronous.bufer: .* buffer?"),
        (
            {"strategies": {"a": {"aggregation": {"rule": "server-adam", "beta3": 1}}}},
            "a: aggregation.beta3: .*did you mean beta[12]?",
        ),
        ({"strategies": {"a": {"seed": 2}}}, "a: seed: that is the experiment's"),
        ({"sedes": [1]}, "sedes: .*did you mean seeds?"),
        ({"world": {"population": {"divices": 3}}}, "world.population.divices: .* devices?"),
        ({"target_accuracy": 80}, "target_accuracy"),
        ({"target_accuracy": float("nan")}, "target_accuracy"),
        ({"evaluate": {"every": -1}}, "evaluate.every"),
        ({"model": {"onnx": "a", "board": "b"}}, "model.board"),
    ],
)
def test_a_mistake_is_named_by_its_field(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ExperimentError) as told:
        ExperimentConfig.parse(yaml.safe_dump(tiny.content(**changed)), "my.yaml")
    assert str(told.value).startswith("my.yaml: ")
    assert re.search(named.replace("?", r"\?"), str(told.value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words",
        "- 1\n- 2\n",
        "name: [",
        "a: &a [*a]",
        "\x00",
        "name: !!python/object/apply:os.getpid []",
        "name: " + "[" * 5000,
        "seeds: [" + "9" * 5000 + "]",
        "at: 2026-99-99",
        "? [a, b]\n: 1",
    ],
)
def test_what_is_no_experiment_is_refused(text: str) -> None:
    with pytest.raises(ExperimentError, match=r"my\.yaml"):
        ExperimentConfig.parse(text, "my.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cant_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "my.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExperimentError, match=r"my\.yaml: can't be read"):
        ExperimentConfig.read(path)
