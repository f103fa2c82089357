"""The study's steps on the ARM image: the same bits as on the host."""

import pytest

pytest.importorskip("torch", reason="accuracy studies need PyTorch: pip install torch")

from benchmarks.accuracy import image_check
from benchmarks.accuracy.image_check import check_on_image
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.training import Schedule
from codegen.firmware.host_engine import HostEngine
from codegen.program.plans import LastLayers, PlanSpec
from tests.benchmarks.accuracy.test_training import separable


def small_task() -> Task:
    def prepare(seed: int):
        graph, samples = separable(0)
        return graph, {"one": samples}

    plans = {"late": PlanSpec(name="late", biases=LastLayers(last=2))}
    return Task("small", "small", prepare, lambda _: plans, ("late",))


@pytest.mark.slow
def test_steps_on_the_image_have_the_bits_of_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    check_on_image(small_task(), "late", Schedule(batch=8), steps=3)
    assert "3 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_different_bit_is_told_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Straying(HostEngine):
        def train_step(self, sample, label, learning_rate_q20, seed):
            stray = self._engine.frame.step_index == 1
            super().train_step(sample, label, learning_rate_q20 + stray * 2**15, seed)

    monkeypatch.setattr(image_check, "HostEngine", Straying)
    with pytest.raises(SystemExit, match="different bits after step 2"):
        check_on_image(small_task(), "late", Schedule(batch=8), steps=3)
