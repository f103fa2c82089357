"""The device's arithmetic on a real ImageNet backbone against PyTorch's numbers for it."""

import math

import numpy as np
import pytest

from codegen.arithmetic.layers import logit_scale
from codegen.program import blob
from codegen.program.lowering import lower
from codegen.reference.interpreter import Interpreter
from tests.codegen import mcunet
from tests.codegen.random_graphs import full_plan

pytestmark = mcunet.needs_mcunet

SPARSE_RATE = 0.025


@pytest.fixture(scope="module", params=[0, 1])
def trained(request: pytest.FixtureRequest) -> tuple[int, Interpreter]:
    """A full training step at rate 0 on one of the fixture's inputs."""
    interpreter = Interpreter(lower(mcunet.graph(), full_plan(mcunet.graph())))
    interpreter.train_step(*mcunet.sample(request.param), 0, 1)
    return request.param, interpreter


def test_every_activation_has_the_checksum_of_the_reference(
    trained: tuple[int, Interpreter],
) -> None:
    index, interpreter = trained
    values = mcunet.fixture()
    found = [array for name, array in interpreter.arrays.items() if "activation" in name]
    sums = [int(array.sum()) for array in found][:-1]
    squares = [int((array**2).sum()) for array in found][:-1]
    assert sums == values[f"in{index}.act_sum"][: len(sums)].tolist()
    assert squares == values[f"in{index}.act_sumsq"][: len(squares)].tolist()
    assert len(sums) == 49


def test_logits_and_loss_are_those_of_the_reference(trained: tuple[int, Interpreter]) -> None:
    index, interpreter = trained
    logits = interpreter.logits * logit_scale(mcunet.graph())
    assert np.abs(logits - mcunet.fixture()[f"in{index}.logits"]).max() < 0.01
    assert interpreter.loss_q16 / 2**16 == pytest.approx(
        float(mcunet.fixture()[f"in{index}.loss"]), abs=0.01
    )


def test_gradients_of_every_layer_point_where_the_reference_points(
    trained: tuple[int, Interpreter],
) -> None:
    index, interpreter = trained
    values = mcunet.fixture()
    checked = 0
    for op in mcunet.graph().convolutions:
        reference = values[f"in{index}.gb_raw.{op.name}"]
        found = mcunet.cosine(mcunet.raw_gradient(interpreter, op.name, "bias"), reference)
        assert found >= 0.999, f"bias of {op.name}"
        name = f"in{index}.gw_raw.{op.name}"
        if name in values:
            reference = mcunet.in_device_order(op.name, values[name])
            assert (
                mcunet.cosine(mcunet.raw_gradient(interpreter, op.name, "weight"), reference)
                >= 0.999
            ), op.name
            checked += 1
    assert checked >= 10


def test_quantization_aware_scaling_has_the_norm_of_the_reference(
    trained: tuple[int, Interpreter],
) -> None:
    index, interpreter = trained
    values = mcunet.fixture()
    for op in mcunet.graph().convolutions:
        # Dead channels have scales near 1e-9, whose squares swamp every norm: set aside.
        alive = op.weight_scale > 1e-6
        steps = mcunet.graph().tensors[op.input].scale * op.weight_scale
        mine = (mcunet.raw_gradient(interpreter, op.name, "bias") / steps**2)[alive]
        reference = values[f"in{index}.gb_qas.{op.name}"][alive]
        ratio = float(np.linalg.norm(mine) / np.linalg.norm(reference))
        # The published plans train the last 24 layers at most; rounding adds up over the 42.
        published = op in mcunet.graph().convolutions[-24:]
        assert math.isclose(ratio, 1.0, abs_tol=0.01 if published else 0.025), op.name


def test_the_published_sparse_step_changes_what_the_reference_changes() -> None:
    program = lower(mcunet.graph(), mcunet.plan("99kb"))
    interpreter = Interpreter(program)
    before = blob.values_of(mcunet.graph())
    picture, label = mcunet.sample(0)
    interpreter.train_step(picture, label, round(SPARSE_RATE * 2**20), 1)
    values = mcunet.fixture()
    for update in program.plan.weights:
        name = f"{update.layer}.weight"
        after = mcunet.in_device_order(update.layer, values[f"sgd_sparse.w_after.{update.layer}"])
        wanted = np.clip(after, -127, 127) - before[name]
        mine = (interpreter.tensors[name] - before[name]).astype(np.float64)
        mine[..., list(update.channels)] += interpreter.fractions[name] / 256
        difference = float(np.linalg.norm(mine - wanted) / np.linalg.norm(wanted))
        assert difference <= 0.02, update.layer
        ratio = float(np.linalg.norm(mine) / np.linalg.norm(wanted))
        assert math.isclose(ratio, 1.0, abs_tol=0.01), update.layer
    interpreter.score(picture, label)
    assert interpreter.loss_q16 / 2**16 <= 0.01


def test_a_version_of_the_weights_has_a_tenth_of_the_model() -> None:
    weights = blob.published_by(mcunet.graph(), [mcunet.plan("49kb")])
    assert weights.published.size == 49_256
    assert weights.published.size + weights.frozen.size == 490_504
