"""Devices as the registry has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.errors import RegistryError
from fleet.protocol import fields
from fleet.protocol.fields import Name

LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,62}$")]
LabelValue = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Labels = Mapping[LabelKey, LabelValue]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NewDevice(_Record):
    """A device that an operator adds: who it is, where it belongs, what it is called."""

    device: Name
    site: Name
    labels: Labels = {}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> NewDevice:
        """The device in plain values; RegistryError names the field that is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            name = values.get("device", "")
            raise RegistryError(
                f"device {name!r}: {where or 'as a whole'}: {first['msg']}"
            ) from None


class Observed(_Record):
    """What a gateway has heard a device say of itself."""

    gateway: Name
    board: Name
    bundle: str
    current: str
    candidate: str = ""
    lease: Annotated[int, fields.uint32.field()] = 0
    free_sram_bytes: Annotated[int, fields.uint32.field()]
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    charging: bool | None = None
    reset_cause: Annotated[str, Field(max_length=32)] | None = None
    fault_code: Annotated[int, fields.uint8.field()] | None = None
    """Of the last fault that the device has a record of; 0: none."""
    link_bits_per_second: Annotated[int, fields.uint32.field()]
    train_samples: Annotated[int, fields.uint16.field()]
    held_out_samples: Annotated[int, fields.uint16.field()]
    online: bool
    last_seen: float
    """Unix time of the last message that the device sent itself; 0: none."""


class Device(_Record):
    """A device of the registry; `observed` is None until it has been heard of."""

    device: str
    site: str
    labels: Labels
    added: float
    retired: bool = False
    observed: Observed | None = None

    def values(self, now: float) -> dict[str, Any]:
        """Its fields as filters see them; those that nobody knows are missing."""
        known: dict[str, Any] = {
            "device": self.device,
            "site": self.site,
            "labels": dict(self.labels),
            "retired": self.retired,
        }
        if self.observed is not None:
            known |= self.observed.model_dump(exclude={"last_seen"}, exclude_none=True)
            known["seen_age_seconds"] = now - self.observed.last_seen
        return known
