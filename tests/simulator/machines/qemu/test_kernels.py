"""Functions called on a core in QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.boards import Cpu
from simulator.errors import MachineFault
from simulator.machines.kernel_call import View
from simulator.machines.qemu.kernels import qemu_kernels
from tests.simulator.conftest import skip_without

SOURCE = """
#include <stdint.h>
uint32_t tf_load(const volatile uint32_t *from);
uint32_t tf_load(const volatile uint32_t *from) { return *from; }
void tf_store(volatile uint8_t *to);
void tf_store(volatile uint8_t *to) { to[16] = 1; }
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
