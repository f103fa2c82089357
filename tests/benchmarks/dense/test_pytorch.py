import pytest

pytest.importorskip("torch", reason="a dense step is compared with PyTorch: pip install torch")

from benchmarks.dense.__main__ import dense_memory
from benchmarks.dense.pytorch import train_apart
from benchmarks.simulator.host import cases
from tests.codegen.random_graphs import full_plan


@pytest.mark.slow
def test_pytorch_holds_the_weights_of_the_computed_step_and_no_fewer_activations() -> None:
    _, graph, _ = cases()[0]
    computed = dense_memory(graph)
    plain, normalized = (train_apart(graph, full_plan(graph), norm) for norm in (False, True))
    assert plain.weights == plain.gradients == computed.weights
    assert normalized.weights == normalized.gradients > computed.weights
    assert normalized.saved > plain.saved > computed.activations
    assert 0 <= plain.code < plain.beyond_import
