"""Boards are data: one JSON file each, described in docs/specification/boards.md."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from codegen.errors import BoardError


def _address(value: object) -> object:
    """Addresses are written in hexadecimal ("0x20000000"), since JSON has no such numbers."""
    return int(value, 16) if isinstance(value, str) else value


Address = Annotated[int, BeforeValidator(_address), Field(ge=0, lt=2**32)]
Positive = Annotated[int, Field(gt=0)]
_QUADSPI_ADDRESS = 0x90000000
_LARGEST_EXTERNAL_FLASH = 2**24
LEAST_STACK_BYTES = 3072
"""tests/device_runtime/port holds the firmware to it, with GCC and with zig."""


FlashName = Literal["internal", "external"]
Cpu = Literal["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]
_EXTENSIONS: dict[Cpu, tuple[set[bool], set[bool]]] = {
    "cortex-m0plus": ({False}, {False}),
    "cortex-m3": ({False}, {False}),
    "cortex-m4": ({True}, {False}),
    "cortex-m7": ({True}, {False}),
    "cortex-m33": ({False, True}, {False}),
    "cortex-m55": ({True}, {False, True}),
}
"""What each core may say of ``dsp`` and of ``mve``."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sram(_Frozen):
    """The region that holds data, stack and pool."""

    address: Address
    bytes: Positive


class Flash(_Frozen):
    """The flash array: erase sectors in order of address; ``controller`` names the driver."""

    address: Address
    sectors: tuple[Positive, ...] = Field(min_length=1)
    controller: str

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return sum(self.sectors)

    def sector_address(self, index: int) -> int:
        """Address of the first byte of sector ``index``."""
        if not 0 <= index < len(self.sectors):
            raise IndexError(f"sector {index} of {len(self.sectors)}")
        return self.address + sum(self.sectors[:index])


class ExternalFlash(_Frozen):
    """A NOR flash beside the microcontroller, read in place; all its sectors have one size.

    ``controller`` names the driver, ``chip`` the set of commands that the chip understands, ``id``
    is what it answers to the command "read identification" (three bytes, the first one highest).
    """

    address: Address
    sector_bytes: Literal[4096, 65536]
    sector_count: Positive
    controller: Literal["quadspi"]
    chip: Literal["n25q"]
    id: Annotated[int, BeforeValidator(_address), Field(ge=0, lt=2**24)]

    @property
    def bytes(self) -> int:
        """Size of the flash."""
        return self.sector_bytes * self.sector_count

    @property
    def sectors(self) -> tuple[int, ...]:
        """Sizes of the erase sectors in order of address."""
        return (self.sector_bytes,) * self.sector_count

    @model_validator(mode="after")
    def _is_addressable(self) -> ExternalFlash:
        if self.address != _QUADSPI_ADDRESS:
            raise ValueError(
                f"address {self.address:#010x}: quadspi maps its flash at {_QUADSPI_ADDRESS:#010x}"
            )
        if self.bytes & (self.bytes - 1) or self.bytes > _LARGEST_EXTERNAL_FLASH:
            raise ValueError(
                f"sector_count {self.sector_count} of {self.sector_bytes} bytes each make "
                f"{self.bytes} bytes; the controller takes powers of two up to "
                f"{_LARGEST_EXTERNAL_FLASH} (addresses of 24 bits)"
            )
        return self


class Board(_Frozen):
    """A target as data. Sizes in bytes, addresses as the core sees them."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")
    title: str
    cpu: Cpu
    fpu: str
    dsp: bool
    mve: bool = False
    """Whether the core has the vector extension (Helium) for integers."""
    clock_hz: Positive
    active_milliwatts: Positive | None = None
    """What the microcontroller takes while it computes at this clock; None where nobody knows."""
    port: str
    sram: Sram
    sram_limit_bytes: Positive
    stack_bytes: Positive
    flash: Flash
    external_flash: ExternalFlash | None = None
    defines: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _core_exists(self) -> Board:
        for name, there, may_be in zip(
            ("dsp", "mve"), (self.dsp, self.mve), _EXTENSIONS[self.cpu], strict=True
        ):
            if there not in may_be:
                raise ValueError(
                    f"{name} {json.dumps(there)}: "
                    f"a {self.cpu} {'never has' if there else 'always has'} it"
                )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Board:
        if self.sram_limit_bytes > self.sram.bytes:
            raise ValueError(
                f"sram_limit_bytes {self.sram_limit_bytes} is more than the board's "
                f"{self.sram.bytes} bytes of SRAM"
            )
        if self.stack_bytes < LEAST_STACK_BYTES:
            raise ValueError(
                f"stack_bytes {self.stack_bytes}: the check of a task's signature needs up to "
                f"{LEAST_STACK_BYTES} bytes"
            )
        if self.stack_bytes >= self.sram_limit_bytes:
            raise ValueError("stack_bytes leaves nothing of sram_limit_bytes")
        return self

    @property
    def engine_only(self) -> bool:
        """Whether no port knows its peripherals: its firmware can be measured, and no more."""
        return self.port == "bare"

    @property
    def flashes(self) -> dict[FlashName, Flash | ExternalFlash]:
        """Every flash of the board by its name, the microcontroller's own first.

        Sectors are numbered through: those of the external flash follow the internal ones.
        """
        if self.external_flash is None:
            return {"internal": self.flash}
        return {"internal": self.flash, "external": self.external_flash}


def list_boards() -> list[str]:
    """Names of the boards that come with tinyfleet, sorted."""
    folder = resources.files("codegen.firmware") / "boards"
    return sorted(
        entry.name.removesuffix(".json")
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    )


def load_board(name: str | Path) -> Board:
    """The board of that name, or the one described by a .json file of the user's own.

    Raises BoardError, with the known names, for an unknown board or a wrong description.
    """
    text = str(name)
    known = list_boards()
    if text in known:
        source = (resources.files("codegen.firmware") / "boards" / f"{text}.json").read_text(
            "utf-8"
        )
        return _parse(source, f"board '{text}'")
    if not text.endswith(".json"):
        raise BoardError(
            f"no board '{text}'; known boards: {', '.join(known)}. "
            "For a board of your own give the path of its .json file"
        )
    try:
        source = Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BoardError(
            f"board file {text} can't be read ({error}); known boards: {', '.join(known)}"
        ) from error
    return _parse(source, f"board file {text}")


def _parse(source: str, origin: str) -> Board:
    try:
        return Board.model_validate(json.loads(source))
    except json.JSONDecodeError as error:
        raise BoardError(f"{origin}: not JSON ({error}); see a known board for the form") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in entry['loc']) or 'board'}: {entry['msg']}"
            for entry in error.errors()
        )
        raise BoardError(
            f"{origin}: {problems}. The form is that of the known boards: "
            f"{', '.join(list_boards())}"
        ) from error
