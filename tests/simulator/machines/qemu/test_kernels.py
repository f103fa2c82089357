"""Functions called on a core in QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.boards import Cpu
from simulator.errors import ImageError, MachineFault
from simulator.machines.kernel_call import View
from simulator.machines.qemu.kernels import qemu_kernels
from tests.simulator.conftest import skip_without

SOURCE = """
#include <stdint.h>
uint32_t tf_load(const volatile uint32_t *from);
uint32_t tf_load(const volatile uint32_t *from) { return *from; }
void tf_store(volatile uint8_t *to);
void tf_store(volatile uint8_t *to) { to[16] = 1; }
void tf_never(void);
void tf_never(void) { for (;;) {} }
"""


@pytest.mark.parametrize(("cpu", "faults"), [("cortex-m0plus", True), ("cortex-m3", False)])
def test_a_word_that_is_not_aligned_is_a_fault_on_the_core_that_loads_none(
    cpu: Cpu, faults: bool, tmp_path: Path
) -> None:
    skip_without("qemu")
    source = tmp_path / "load.c"
    source.write_text(SOURCE)
    core = qemu_kernels([source], [], cpu=cpu)
    try:
        numbers = np.arange(16, dtype=np.uint8)
        assert core.call("tf_load", View(numbers, 4)).result == 0x07060504
        if faults:
            for _ in range(2):
                with pytest.raises(MachineFault, match=r"tf_load faults \(tf_load"):
                    core.call("tf_load", View(numbers, 5))
            assert core.call("tf_load", View(numbers, 8)).result == 0x0B0A0908
        else:
            assert core.call("tf_load", View(numbers, 5)).result == 0x08070605
            with pytest.raises(MachineFault, match="outside its buffers"):
                core.call("tf_store", numbers)
    finally:
        core.close()


def test_a_call_that_does_not_return_or_fit_is_told_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("qemu")
    source = tmp_path / "load.c"
    source.write_text(SOURCE)
    core = qemu_kernels([source], [], cpu="cortex-m55")
    try:
        numbers = np.arange(16, dtype=np.uint8)
        with pytest.raises(ImageError, match="more than 4 MiB"):
            core.call("tf_load", np.zeros(4 << 20, np.uint8))
        wait, patience = core._debugger.wait, iter([0.1])
        monkeypatch.setattr(core._debugger, "wait", lambda seconds: wait(next(patience, seconds)))
        with pytest.raises(MachineFault, match=r"tf_never doesn't return \(tf_never"):
            core.call("tf_never")
        assert core.call("tf_load", View(numbers, 4)).result == 0x07060504
    finally:
        core.close()
