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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from codegen.errors import BudgetError, BundleError
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
SAMPLE_PREFIX, LINK_PREFIX = "tf_sample_", "tf_link_"

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


@dataclass(frozen=True)
class ImageSizes:
    """What a linked image occupies, in bytes."""

    flash: FlashBytes
    samples: int
    link: int
    data_bss_other: int
    stack: int

    def sram(self, arena: int, state: int) -> SramBytes:
        """SRAM of a plan with this ``arena`` (logits included) and ``state``."""
        fixed = self.samples + self.link + self.data_bss_other + self.stack
        return SramBytes(
            arena=arena,
            state=state,
            samples=self.samples,
            link=self.link,
            data_bss_other=self.data_bss_other,
            stack=self.stack,
            total=fixed + arena + state,
        )


def measure_image(elf: Path) -> ImageSizes:
    """Sizes of a linked image by its sections and symbols.

    .data and .bss with their padding are split into samples, link and the rest, so that all of
    them with the stack reach exactly to the start of the pool. Raises BundleError for a file
    that isn't an image of ours.
    """
    try:
        with elf.open("rb") as stream:
            image = ELFFile(stream)
            table = image.get_section_by_name(".symtab")
            if table is None:
                raise BundleError(f"{elf} has no symbols; compile the bundle again")
            sizes: dict[str, int] = {}
            values: dict[str, int] = {}
            for symbol in table.iter_symbols():  # type: ignore[attr-defined]
                sizes[symbol.name] = sizes.get(symbol.name, 0) + symbol["st_size"]
                values[symbol.name] = symbol["st_value"]
            flash = sum(
                segment["p_filesz"]
                for segment in image.iter_segments()
                if segment["p_type"] == "PT_LOAD"
            )
            weights = sizes[blob.FACTORY_WEIGHTS]
            # A bundle whose plans train everything has no frozen tensors.
            frozen = sizes.get(blob.FROZEN_WEIGHTS, 0)
            stack = values["__stack_top"] - values["__stack_bottom"]
            data_and_bss = values["__pool_start"] - values["__stack_top"]
    except (ELFError, KeyError) as error:
        raise BundleError(
            f"{elf} isn't an image of tinyfleet ({error}); compile the bundle again"
        ) from error
    samples, link = (
        sum(
            size
            for name, size in sizes.items()
            if name.startswith(prefix) and _is_object(values[name], values)
        )
        for prefix in (SAMPLE_PREFIX, LINK_PREFIX)
    )
    return ImageSizes(
        FlashBytes(code=flash - weights - frozen, weights=weights, frozen=frozen, total=flash),
        samples,
        link,
        data_and_bss - samples - link,
        stack,
    )


def _is_object(address: int, values: Mapping[str, int]) -> bool:
    """Whether ``address`` lies in .data or .bss (and isn't a function or a constant)."""
    return values["__data_start"] <= address < values["__pool_start"]


def check_budget(
    plans: Sequence[PlanReport], board: Board, suggest: Callable[[PlanReport], str] | None = None
) -> None:
    """Raises BudgetError, with the table of all plans, if one of them exceeds the limit.

    ``suggest`` says of a plan that is too much what could be trained instead.
    """
    over = [plan for plan in plans if not plan.fits]
    if not over:
        return
    fitting = [plan.name for plan in plans if plan.fits]
    remedy = (
        f"These plans fit: {', '.join(fitting)}."
        if fitting
        else "None of them fits: train less, or use a smaller model or a board with more SRAM."
    )
    names = ", ".join(plan.name for plan in over)
    lines = [
        f"too much SRAM for board {board.name}: {names} (bytes)",
        sram_table(plans),
        remedy,
        *([suggest(plan) for plan in over] if suggest else ()),
    ]
    raise BudgetError("\n".join(lines))


def sram_table(plans: Sequence[PlanReport]) -> str:
    """SRAM by purpose, one row per plan, as text."""
    columns = list(SramBytes.model_fields)
    rows = [["plan", *columns, "limit"]]
    for plan in plans:
        sizes = plan.sram_bytes.model_dump()
        rows.append([plan.name, *(f"{sizes[c]:,}" for c in columns), f"{plan.sram_limit_bytes:,}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + row[0].ljust(widths[0])
        + "".join("  " + c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


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


def write_bundle(
    out: Path, manifest: Mapping[str, Any], report: Report, files: Mapping[str, bytes]
) -> Bundle:
    """Writes a bundle folder in one step: afterwards all of it is there, or the old one.

    ``manifest`` has every field but ``files`` and ``sha256``; ``files`` maps names within the
    bundle (``firmware.elf``, ``weights.bin``, ``src/…``) to contents. Raises BundleError where
    ``out`` is something else than a bundle.
    """
    out = out.absolute()
    if out.exists() and not (out / MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise BundleError(f"{out} exists and isn't a bundle; choose another --out or remove it")
    contents = {**files, REPORT: _pretty(report.model_dump(mode="json"))}
    fields = {
        **manifest,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    normal = Manifest.model_validate({**fields, "sha256": "0" * 64})
    final = normal.model_copy(update={"sha256": _manifest_digest(normal)})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        staging = Path(folder) / "bundle"
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
