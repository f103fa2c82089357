"""The C training engine as a host shared library, driven through ctypes.

The library is built from the same sources as the firmware; the numbers it gives are those
of the boards, bit for bit.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.errors import PlanError
from codegen.host_kernels import SETS
from codegen.program.steps import Updates

_Pointer = ctypes.c_void_p
_Program = ctypes.CFUNCTYPE(None, _Pointer)


class _Frame(ctypes.Structure):
    _fields_ = (
        ("weights", _Pointer),
        ("arena", _Pointer),
        ("state", _Pointer),
        ("input", _Pointer),
        ("logits", ctypes.POINTER(ctypes.c_int32)),
        ("label", ctypes.c_int32),
        ("learning_rate_q20", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("step_index", ctypes.c_uint32),
        ("loss_q16", ctypes.c_uint32),
        ("updates", ctypes.c_uint32),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint8 * 32),
        ("arena_bytes", ctypes.c_uint32),
        ("state_bytes", ctypes.c_uint32),
        ("delta_values", ctypes.c_uint32),
        ("shared_values", ctypes.c_uint32),
        ("personal_layout", ctypes.c_uint32),
        ("local_layout", ctypes.c_uint32),
        ("segment_count", ctypes.c_uint16),
        ("accumulate", ctypes.c_uint16),
        ("segments", _Pointer),
        ("forward", _Program),
        ("loss", _Program),
        ("backward", _Program),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("bundle_id", ctypes.c_uint8 * 32),
        ("weights_sha256", ctypes.c_uint8 * 32),
        ("factory_weights", _Pointer),
        ("model_digest", ctypes.c_uint32),
        ("sample_digest", ctypes.c_uint32),
        ("weights_bytes", ctypes.c_uint32),
        ("sample_bytes", ctypes.c_uint32),
        ("labels", ctypes.c_uint32),
        ("classes", ctypes.c_uint16),
        ("binary", ctypes.c_uint8),
        ("plan_count", ctypes.c_uint16),
        ("plans", ctypes.POINTER(_Plan)),
    )


class _TensorOutput(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("zero_point", ctypes.c_int16),
        ("offsets", ctypes.POINTER(ctypes.c_uint32)),
    )


class _Engine(ctypes.Structure):
    _fields_ = (
        ("plan", ctypes.POINTER(_Plan)),
        ("classes", ctypes.c_uint16),
        ("keeps_personal", ctypes.c_bool),
        ("binary", ctypes.c_bool),
        ("frame", _Frame),
    )


class _Cursor(ctypes.Structure):
    _fields_ = (
        ("engine", _Pointer),
        ("value", ctypes.c_uint32),
        ("within", ctypes.c_uint32),
        ("segment", ctypes.c_uint16),
    )


def kernel_sets(library: Path) -> list[str]:
    """Names of the sets of kernels that this machine can run, the best first.

    ``library`` is a host library: of a ``HostEngine``, or of devices.
    """
    choose = ctypes.CDLL(str(library)).tf_choose_kernels
    found = [name for name in SETS if choose(name.encode())]
    choose(found[0].encode())
    return found


def choose_kernels(library: Path, name: str) -> None:
    """Makes all engines of ``library`` in this process use a set; they begin with the best one.

    None may be running meanwhile. All sets compute the same bits. Raises PlanError where this
    machine can't run it.
    """
    if not ctypes.CDLL(str(library)).tf_choose_kernels(name.encode()):
        known = ", ".join(kernel_sets(library))
        raise PlanError(f"this machine has no kernels {name!r}; it has {known}")


WHOLE_MIX = 256
"""TF_WHOLE_MIX of device_runtime/include/tinyfleet/engine.h."""
UPDATES: dict[Updates, int] = {"shared": 1, "personal": 2, "all": 3}


class HostEngine:
    """One plan of a bundle's model, loaded with a weights blob.

    ``library`` is a shared library built by ``codegen.compile.build_host_engine``. ``plan_id``
    is the plan's id in hex. ``weights`` is a blob; the factory weights where left out.
    """

    def __init__(self, library: Path, plan_id: str, weights: bytes | None = None) -> None:
        """Raises PlanError where the library has no such plan."""
        self._library = ctypes.CDLL(str(library))
        self._library.tf_engine_find_plan.restype = ctypes.POINTER(_Plan)
        self._library.tf_engine_pool_bytes.restype = ctypes.c_uint32
        self._library.tf_delta_next.restype = ctypes.c_int32
        self._library.tf_engine_score.restype = ctypes.c_int32
        self._model = _Model.in_dll(self._library, "tf_the_model")
        wanted = (ctypes.c_uint8 * 32)(*bytes.fromhex(plan_id))
        self._plan = self._library.tf_engine_find_plan(ctypes.byref(self._model), wanted)
        if not self._plan:
            raise PlanError(f"{library} has no plan {plan_id}; compile it into the bundle")
        pool_bytes = self._library.tf_engine_pool_bytes(ctypes.byref(self._model), self._plan)
        self._pool = ctypes.create_string_buffer(pool_bytes)
        self._engine = _Engine()
        self.load(weights)

    def load(self, weights: bytes | None = None) -> None:
        """Starts over from a blob, or from the factory weights."""
        source: ctypes.c_void_p | ctypes.Array[ctypes.c_uint64]
        if weights is None:
            source = _Pointer(self._model.factory_weights)
        else:
            assert len(weights) == self._model.weights_bytes, "the blob is another model's"
            source = (ctypes.c_uint64 * (-(-len(weights) // 8)))()
            ctypes.memmove(source, weights, len(weights))
        self._weights = source
        status = self._library.tf_engine_load(
            ctypes.byref(self._engine),
            ctypes.byref(self._model),
            self._plan,
            source,
            self._pool,
            ctypes.c_uint32(len(self._pool)),
        )
        assert status == 0, "the pool was sized by tf_engine_pool_bytes"

    def score(self, sample: NDArray[np.int8], label: int) -> int:
        """Forward pass and loss of a sample; returns the predicted class.

        ``sample`` is int8 (H, W, C), or flat with the bytes of its targets behind, where the loss
        has any. With the binary loss the result has a bit for each output, and so has ``label``.
        """
        data = self._checked(sample, label)
        return int(
            self._library.tf_engine_score(
                ctypes.byref(self._engine), data.ctypes.data_as(_Pointer), ctypes.c_int32(label)
            )
        )

    def train_step(
        self, sample: NDArray[np.int8], label: int, learning_rate_q20: int, seed: int
    ) -> None:
        """One step of SGD; ``learning_rate_q20`` is the learning rate times 2**20."""
        data = self._checked(sample, label)
        self._library.tf_engine_train_step(
            ctypes.byref(self._engine),
            data.ctypes.data_as(_Pointer),
            ctypes.c_int32(label),
            ctypes.c_uint32(learning_rate_q20),
            ctypes.c_uint32(seed),
        )

    def _checked(self, sample: NDArray[np.int8], label: int) -> NDArray[np.int8]:
        """The sample as C reads it: from memory that nothing there guards."""
        assert sample.size == self._model.sample_bytes, "the sample has another shape"
        assert 0 <= label < self._model.labels, f"label {label} of {self._model.labels}"
        return np.ascontiguousarray(sample, np.int8)

    @property
    def logits(self) -> NDArray[np.int32]:
        """Logits of the last forward pass, in units of the manifest's logit_scale.

        Of outputs that are a tensor's codes, these less their zero point: between ``score`` and
        what is called next.
        """
        if self._model.classes == 0:
            return self._tensor_output()
        return np.array(self._engine.frame.logits[: self._model.classes], np.int32)

    def _tensor_output(self) -> NDArray[np.int32]:
        output = _TensorOutput.in_dll(self._library, "tf_the_output")
        plans = ctypes.addressof(self._model.plans.contents)
        at = (ctypes.addressof(self._plan.contents) - plans) // ctypes.sizeof(_Plan)
        place = self._engine.frame.arena + output.offsets[at]
        codes = np.frombuffer(ctypes.string_at(place, output.size), np.int8)
        return codes.astype(np.int32) - np.int32(output.zero_point)

    @property
    def loss_q16(self) -> int:
        """Loss of the last labelled sample times 2**16, in the unit of ``ir.LOSS_UNITS``."""
        return int(self._engine.frame.loss_q16)

    @property
    def state(self) -> bytes:
        """The plan's whole update state: working copies and fractions."""
        return ctypes.string_at(self._engine.frame.state, self._plan.contents.state_bytes)

    @property
    def arena(self) -> bytes:
        """The plan's arena as the last step left it."""
        return ctypes.string_at(self._engine.frame.arena, self._plan.contents.arena_bytes)

    def set_updates(self, which: Updates) -> None:
        """Which of the plan's tensors training steps change from here on."""
        self._engine.frame.updates = UPDATES[which]

    def kept(self, personal_only: bool) -> bytes:
        """What a device keeps for itself of the state: personal tensors, or all."""
        library, plan = self._library, self._plan
        library.tf_engine_kept_bytes.restype = ctypes.c_uint32
        library.tf_engine_kept_word.restype = ctypes.c_uint32
        words = library.tf_engine_kept_bytes(plan, ctypes.c_bool(personal_only)) // 4
        engine, which = ctypes.byref(self._engine), ctypes.c_bool(personal_only)
        read = [
            library.tf_engine_kept_word(engine, which, ctypes.c_uint32(i)) for i in range(words)
        ]
        return np.array(read, "<u4").tobytes()

    def lay_over(self, kept: bytes, personal_only: bool, mix: int = WHOLE_MIX) -> None:
        """Move the state towards what was kept, by ``mix`` 256ths; right after ``load``."""
        self._library.tf_engine_lay_over(
            ctypes.byref(self._engine),
            ctypes.create_string_buffer(kept, len(kept)),
            ctypes.c_bool(personal_only),
            ctypes.c_uint32(mix),
        )

    def delta(self, *, keeps_personal: bool = False) -> NDArray[np.int32]:
        """Delta against the loaded blob, in plan order and delta units.

        Without personal tensors where the device keeps them.
        """
        plan = self._plan.contents
        self._engine.keeps_personal = keeps_personal
        cursor = _Cursor()
        self._library.tf_delta_begin(ctypes.byref(cursor), ctypes.byref(self._engine))
        return np.array(
            [
                self._library.tf_delta_next(ctypes.byref(cursor))
                for _ in range(plan.shared_values if keeps_personal else plan.delta_values)
            ],
            np.int32,
        )
