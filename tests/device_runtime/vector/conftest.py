"""Without a vector unit there is nothing to test here."""

from __future__ import annotations

import pytest

from tests.device_runtime.kernels.calls import sets_of_this_machine


@pytest.fixture(autouse=True)
def _vector_unit() -> None:
    if not sets_of_this_machine():
        pytest.skip("this machine has neither AVX2, AVX-512 with VNNI nor NEON")
