"""Symbols of images."""

from __future__ import annotations

from pathlib import Path

from simulator.machines.kernel_call import arm_kernels

SOURCE = """
static __attribute__((noinline)) int shared(int x) {{ return {body}; }}
int tf_{name}(int x);
int tf_{name}(int x) {{ return shared(x) + 1; }}
"""


def test_static_functions_of_one_name_are_counted_by_it_both(tmp_path: Path) -> None:
    sources = []
    for name, body in (("first", "x * 3"), ("second", "x * x * x - 5")):
        sources.append(tmp_path / f"{name}.c")
        sources[-1].write_text(SOURCE.format(name=name, body=body))
    core = arm_kernels(sources, [])
    for name, result in (("first", 22), ("second", 339)):
        call = core.call(f"tf_{name}", 7)
        assert call.result == result
        assert call.by_function.keys() == {f"tf_{name}", "shared"}
