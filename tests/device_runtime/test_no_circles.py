"""No source of the runtime calls one that calls it, by whatever detour."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "device_runtime"
# The firmware and a board know each other by PORTING.md; everything else is portable.
PORTS = ("bare", "host", "mps", "stm32")
DEFINITION = re.compile(r"^(?!static)[a-z][\w \*]*?\b(tf_\w+)\([^;{]*\) \{$", re.MULTILINE)
USE = re.compile(r"\b(tf_\w+)\b")


def sources(port: str) -> list[Path]:
    others = [RUNTIME / "port" / name for name in PORTS if name != port]
    found = sorted(RUNTIME.rglob("*.c"))
    return [path for path in found if not any(path.is_relative_to(other) for other in others)]


def calls(port: str) -> dict[str, set[str]]:
    """Which files each file needs functions of."""
    texts = {str(path.relative_to(RUNTIME)): path.read_text() for path in sources(port)}
    owners: dict[str, str] = {}
    same = {name: name for name in texts}
    for name, text in texts.items():
        for function in DEFINITION.findall(text):
            # Implementations of one interface are as one, also where one file (block_portable) has
            # what others (block_dsp, block_backward_dsp) have between them.
            one, other = same[owners.setdefault(function, name)], same[name]
            same = {file: one if group == other else group for file, group in same.items()}
    graph: dict[str, set[str]] = {}
    for name, text in texts.items():
        used = {same[owners[word]] for word in USE.findall(text) if word in owners}
        graph.setdefault(same[name], set()).update(used - {same[name]})
    return graph


@pytest.mark.parametrize("port", PORTS)
def test_the_sources_of_the_runtime_do_not_call_in_circles(port: str) -> None:
    graph = calls(port)
    assert graph["client/client.c"] >= {"client/round.c", "link/mqtt.c"}
    assert graph["link/mqtt_receive.c"] >= {"link/mqtt_reader.c", "link/mqtt_control.c"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
