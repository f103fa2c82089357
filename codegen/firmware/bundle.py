"""Bundles: firmware for one model and one board, with what fleet and simulator need to know.

The files are described in docs/specification/bundle.md. Sizes are those of the linked image.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from codegen.errors import BundleError
from codegen.firmware.boards import Board, FlashName, load_board
from codegen.firmware.flash_layout import Keep
from codegen.graph.floats import LossChoice
from codegen.graph.ir import Loss, label_count
from codegen.program import blob
from codegen.program.row_pairs import Order

MANIFEST_FORMAT: Literal["tinyfleet-manifest/2"] = "tinyfleet-manifest/2"
MANIFEST, REPORT, FIRMWARE, WEIGHTS = "manifest.json", "report.json", "firmware.elf", "weights.bin"
BOARD, PROGRAM = "board.json", "program.json"
GRAPH, FROZEN = "graph.json", "frozen.bin"
QUANTIZATION = "quantization.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]

_Parsed = TypeVar("_Parsed", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ActivationInfo(_Strict):
    """The model's int8 input or output: [H, W, C], real value = scale * (code - zero_point)."""

    shape: tuple[int, int, int]
    scale: float
    zero_point: int

    def codes(self, x: NDArray[Any]) -> NDArray[np.int8]:
        """Samples (n, H, W, C) as the int8 codes that a device's sensor driver would log.

        ``x`` are real values, or codes already where they are int8.
        """
        if x.dtype == np.int8:
            return x
        steps = np.rint(x.astype(np.float64) / self.scale) + self.zero_point
        codes: NDArray[np.int8] = np.clip(steps, -128, 127).astype(np.int8)
        return codes


class ModelInfo(_Strict):
    """The model that the bundle was made from; ``logit_scale`` is the real value of one step.

    ``classes`` counts its outputs, whatever its ``loss``. ``target_scale`` is the real value of one
    step of a sample's targets, ``output`` the tensor whose codes the outputs are: if there is one.

    ``digest`` says what the bytes of the weights mean, ``sample_digest`` what those of samples
    (``codegen.firmware.model_digest``). ``parameters`` counts those of frozen tensors as well.
    """

    name: str
    digest: Digest
    sample_digest: Digest
    onnx_sha256: Digest
    input: ActivationInfo
    classes: int
    parameters: Count
    logit_scale: float
    loss: Loss = "cross-entropy"
    target_scale: float | None = None
    output: ActivationInfo | None = None

    @model_serializer(mode="wrap")
    def _as_far_as_said(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unsaid = (("loss", "cross-entropy"), ("target_scale", None), ("output", None))
        return {k: v for k, v in serialize(self).items() if (k, v) not in unsaid}

    @property
    def labels(self) -> int:
        """Labels of samples are below it."""
        return label_count(self.loss, self.classes)

    @property
    def sample_bytes(self) -> int:
        """Of a sample in a device's log."""
        return math.prod(self.input.shape) + (2 * self.classes if self.target_scale else 0)


class BoardInfo(_Strict):
    """The board that the bundle was made for.

    ``active_milliwatts`` isn't written where it isn't known: manifests of before it have a digest.
    """

    name: str
    active_milliwatts: Annotated[int, Field(gt=0)] | None = None

    @model_serializer(mode="wrap")
    def _as_far_as_known(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class WeightsInfo(_Strict):
    """The weights blob (the published tensors), version 0."""

    bytes: Count
    sha256: Digest
    file: str


class TensorInfo(_Strict):
    """A tensor of the weights blob; ``offset`` in bytes, ``step`` per output channel or one."""

    name: str
    layer: str
    kind: blob.Kind
    dtype: blob.DType
    shape: tuple[int, ...]
    offset: Annotated[int, Field(ge=0, multiple_of=4)]
    limit: Count
    step: tuple[float, ...]
    order: Order


class SegmentInfo(_Strict):
    """The part of a plan's delta in one tensor: runs (start, count) of the tensor's last axis.

    ``personal`` isn't written where it is false: manifests of before it have a digest.
    """

    tensor: str
    channels: tuple[tuple[Count, Count], ...]
    values: Count
    shift: Count
    personal: bool = False

    @model_serializer(mode="wrap")
    def _as_far_as_marked(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return fields if self.personal else {k: v for k, v in fields.items() if k != "personal"}


class PlanInfo(_Strict):
    """A plan of the bundle; ``pool_bytes`` is what a device needs free to run it."""

    id: Digest
    name: str
    plan: dict[str, Any]
    delta_values: Count
    pool_bytes: Count
    segments: tuple[SegmentInfo, ...]


class RegionInfo(_Strict):
    """A run of flash sectors: [first, count], numbered through all flashes of the board."""

    flash: FlashName = "internal"
    address: Count
    bytes: Count
    sectors: tuple[int, int]


class SamplesInfo(RegionInfo):
    """The sample log: units that it is divided into, and what stays when all are full."""

    units: Annotated[int, Field(ge=1)]
    keep: Keep = "newest"


class FlashInfo(_Strict):
    """Where everything lies (flash.md); the firmware goes on where the boot sector ends.

    ``personal`` is there only where a plan has personal tensors.
    """

    boot: RegionInfo
    identity: RegionInfo
    journal: RegionInfo
    firmware: RegionInfo
    slot_a: RegionInfo
    slot_b: RegionInfo
    samples: SamplesInfo
    personal: RegionInfo | None = None

    @model_serializer(mode="wrap")
    def _as_far_as_there(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}

    @property
    def regions(self) -> dict[str, RegionInfo]:
        """All of them by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: region for name, region in found.items() if region is not None}


class Manifest(_Strict):
    """What fleet and simulator need to know of a bundle (manifest.json)."""

    format: Literal["tinyfleet-manifest/2"]
    bundle_id: Digest
    model: ModelInfo
    board: BoardInfo
    compiler: str
    weights: WeightsInfo
    tensors: tuple[TensorInfo, ...]
    coordinates: Count
    plans: tuple[PlanInfo, ...]
    flash: FlashInfo
    files: dict[str, Digest]
    sha256: Digest

    def plan(self, id_or_name: str) -> PlanInfo:
        """The plan with this id, beginning of an id, or name. Raises BundleError for none."""
        for plan in self.plans:
            if id_or_name == plan.name or (len(id_or_name) >= 8 and plan.id.startswith(id_or_name)):
                return plan
        known = ", ".join(f"{plan.name} ({plan.id[:8]})" for plan in self.plans)
        raise BundleError(f"the bundle has no plan {id_or_name!r}; it has {known}")


class SramBytes(_Strict):
    """SRAM by purpose. ``arena`` includes logits and alignment; ``total`` is the sum."""

    arena: Count
    state: Count
    samples: Count
    link: Count
    data_bss_other: Count
    stack: Count
    total: Count


class Macs(_Strict):
    """Multiply-accumulates of one training step."""

    forward: Count
    backward: Count


class PlanReport(_Strict):
    """What one plan costs."""

    id: Digest
    name: str
    sram_bytes: SramBytes
    sram_limit_bytes: Count
    macs: Macs
    delta_values: Count
    arena_lower_bound_bytes: Count
    arena_above_bound_bytes: Count

    @property
    def fits(self) -> bool:
        """Whether the board has enough SRAM for the plan."""
        return self.sram_bytes.total <= self.sram_limit_bytes


class FlashBytes(_Strict):
    """Flash of the image: factory weights, frozen tensors; code is everything else."""

    code: Count
    weights: Count
    frozen: Count
    total: Count


class LossInfo(_Strict):
    """What the model is trained with, why, and whether that is a guess; see `LossChoice`."""

    name: Loss
    because: str
    guessed: bool
    output: str = ""
    output_because: str = ""
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, choice: LossChoice) -> LossInfo:
        """What the importer chose."""
        same = {name: getattr(choice, name) for name in cls.model_fields if name != "name"}
        return cls(name=choice.loss, **same)


class Report(_Strict):
    """Sizes and costs (report.json)."""

    board: str
    loss: LossInfo
    plans: tuple[PlanReport, ...]
    flash_bytes: FlashBytes
    flash_regions: FlashInfo
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been verified."""

    path: Path
    manifest: Manifest
    report: Report

    @property
    def firmware(self) -> Path:
        """The linked image."""
        return self.path / FIRMWARE

    @property
    def board(self) -> Board:
        """The board as it was described when the bundle was compiled."""
        return load_board(self.path / BOARD)

    @property
    def weights(self) -> bytes:
        """The weights blob, version 0."""
        return (self.path / self.manifest.weights.file).read_bytes()

    @property
    def source_folder(self) -> Path:
        """Generated C and linker script."""
        return self.path / "src"


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, which digests are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def bundle_id(
    board: BoardInfo,
    model: ModelInfo,
    tensors: Sequence[TensorInfo],
    weights: WeightsInfo,
    plan_ids: Sequence[str],
) -> str:
    """SHA-256 (hex) of what makes two bundles exchangeable for a fleet."""
    return hashlib.sha256(
        canonical_json(
            {
                "board": {"name": board.name},
                "model": model.model_dump(mode="json"),
                "tensors": [tensor.model_dump(mode="json") for tensor in tensors],
                "weights": weights.model_dump(mode="json"),
                "plans": list(plan_ids),
            }
        )
    ).hexdigest()


def check_place(out: Path) -> None:
    """Raises BundleError where ``out`` is something else than a bundle."""
    if out.exists() and not (out / MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise BundleError(f"{out} exists and isn't a bundle; choose another --out or remove it")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the file system of ``out``."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
    except OSError as error:
        raise BundleError(
            f"the bundle can't be written to {out}: {error.strerror}; choose another --out"
        ) from error
    with folder as name:
        yield Path(name)


def write_bundle(
    out: Path, manifest: Mapping[str, Any], report: Report, files: Mapping[str, bytes]
) -> Bundle:
    """Writes a bundle folder in one step: afterwards all of it is there, or the old one.

    ``manifest`` has every field but ``files`` and ``sha256``; ``files`` maps names within the
    bundle (``firmware.elf``, ``weights.bin``, ``src/…``) to contents. Raises BundleError where
    ``out`` is something else than a bundle, or nothing can be written there.
    """
    out = out.absolute()
    check_place(out)
    contents = {**files, REPORT: _pretty(report.model_dump(mode="json"))}
    fields = {
        **manifest,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    normal = Manifest.model_validate({**fields, "sha256": "0" * 64})
    final = normal.model_copy(update={"sha256": _manifest_digest(normal)})
    with _beside(out) as folder:
        staging = folder / "bundle"
        for name, data in {**contents, MANIFEST: _pretty(final.model_dump(mode="json"))}.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        if out.exists():
            _exchange(staging, out)
        else:
            staging.replace(out)
    return Bundle(out, final, report)


def _exchange(one: Path, other: Path) -> None:
    """Lets two folders take each other's place, in one step where the system knows how.

    A rename can't replace a folder that has files in it, and of two renames a killed process may do
    the first only.
    """
    at_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2") and not libc.renameat2(
        at_folder, os.fsencode(one), at_folder, os.fsencode(other), exchange
    ):
        return
    with tempfile.TemporaryDirectory(dir=one.parent) as folder:
        other.replace(Path(folder) / "old")
        one.replace(other)


def load_bundle(path: Path | str) -> Bundle:
    """Reads a bundle and verifies all of it.

    Raises BundleError that names the missing or damaged file, and the remedy.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}; make one with "
            "tinyfleet compile MODEL.onnx --board NAME"
        )
    manifest = _parse(Manifest, folder / MANIFEST)
    if _manifest_digest(manifest) != manifest.sha256:
        raise _damaged(folder / MANIFEST, "its digest is wrong")
    for name, digest in manifest.files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _damaged(folder / MANIFEST, f"it names a file outside the bundle, {name!r}")
        if not file.is_file():
            raise _damaged(file, "it is missing")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise _damaged(file, "its SHA-256 isn't the manifest's")
    missing = {FIRMWARE, REPORT, BOARD, manifest.weights.file} - set(manifest.files)
    if missing:
        raise _damaged(folder / MANIFEST, f"it doesn't list {', '.join(sorted(missing))}")
    return Bundle(folder, manifest, _parse(Report, folder / REPORT))


def _manifest_digest(manifest: Manifest) -> str:
    return hashlib.sha256(
        canonical_json(manifest.model_dump(mode="json", exclude={"sha256"}))
    ).hexdigest()


def _parse(kind: type[_Parsed], file: Path) -> _Parsed:
    try:
        content = json.loads(file.read_text("utf-8"))
        canonical_json(content)  # refuses numbers beyond the range of a float
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(file, f"{place}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, why: str) -> BundleError:
    return BundleError(
        f"{file} is damaged, or of another version: {why}; compile the bundle again "
        "(tinyfleet compile) or copy it again from where it came"
    )


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
