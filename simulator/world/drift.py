"""How a device's sensor differs from the lab's, and how that changes with time.

Formulas are over the sensor's full scale: 0 is its lowest value, 1 its highest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from scipy import ndimage  # type: ignore[import-untyped]
from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

from simulator.world.draws import generator
from simulator.world.fields import DAY_SECONDS, PositiveRange, Range, Section, Share, drawn


@dataclass(frozen=True)
class Drift:
    """How one camera differs from the lab's.

    `rotation_degrees` turns the image counter-clockwise, `stroke` mixes in a grey dilation
    (positive) or erosion (negative) by that share, and then pixel = gain * pixel + offset,
    cut off at the sensor's range 0 … 1.
    """

    rotation_degrees: float
    stroke: float
    gain: float
    offset: float

    def apply(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (n, height, width, channels) of 0 … 1 as this sensor sees them, same shape."""
        count, height, width, channels = images.shape
        seen = images.transpose(0, 3, 1, 2).reshape(-1, height, width)
        if self.rotation_degrees:
            seen = ndimage.rotate(seen, self.rotation_degrees, axes=(2, 1), reshape=False, order=1)
        if share := abs(self.stroke):
            change = ndimage.grey_dilation if self.stroke > 0 else ndimage.grey_erosion
            seen = (1 - share) * seen + share * change(seen, size=(1, 2, 2))
        seen = np.clip(self.gain * seen + self.offset, 0.0, 1.0)
        seen = seen.reshape(count, channels, height, width)
        return np.ascontiguousarray(seen.transpose(0, 2, 3, 1), dtype=np.float32)


def _constant(value: object) -> object:
    return value if isinstance(value, dict) else {"at": value}


class _Course(Section):
    """A parameter of a sensor: where a device's begins, and how it changes."""

    at: Range
    """In the beginning; each device has its own."""
    per_day: Range = (0.0, 0.0)
    """By so much it changes in a day; each device has its own."""


Course = Annotated[_Course, BeforeValidator(_constant)]
"""A number, a range, or `{at: …, per_day: …}`."""


def _course(at: float) -> _Course:
    return _Course(at=(at, at))


class SensorKind(Section, ABC):
    """What every kind of sensor has."""

    @abstractmethod
    def seen(
        self, x: NDArray[np.float32], seconds: NDArray[np.float64], seed: int, device: int
    ) -> NDArray[np.float32]:
        """Samples (n, height, width, channels) of full scale 0 … 1 as the device sees them.

        ``seconds`` (n,) says when it saw each.
        """

    def _parameters(
        self, seed: int, device: int, seconds: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """Value (n,) of each of the device's parameters at these instants."""
        values = {}
        for name, course in self:
            if isinstance(course, _Course):
                random = generator(seed, f"sensor/{name}", device)
                at, slope = drawn(course.at, random), drawn(course.per_day, random)
                values[name] = at + slope * seconds / DAY_SECONDS
        return values


class ImageSensor(SensorKind):
    """A camera: turned, with strokes thicker or thinner, brighter or darker."""

    kind: Literal["image"] = "image"
    rotation_degrees: Course = _course(0.0)
    """Counter-clockwise."""
    stroke: Course = _course(0.0)
    """Share, to 1, of what is one pixel thicker; negative: thinner."""
    gain: Course = _course(1.0)
    offset: Course = _course(0.0)

    def seen(
        self, x: NDArray[np.float32], seconds: NDArray[np.float64], seed: int, device: int
    ) -> NDArray[np.float32]:
        """See `SensorKind`."""
        values = self._parameters(seed, device, seconds)
        values["stroke"] = np.clip(values["stroke"], -1.0, 1.0)
        seen = np.empty_like(x)
        # Samples that were seen alike, as all are without a change, are seen together.
        alike, of = np.unique(np.stack(list(values.values())), axis=1, return_inverse=True)
        for number, parameters in enumerate(alike.T):
            drift = Drift(**dict(zip(values, map(float, parameters), strict=True)))
            seen[of.ravel() == number] = drift.apply(x[of.ravel() == number])
        return seen


class SeriesSensor(SensorKind):
    """A sensor of anything else than images: another scale, a shift, noise, or turned in space."""

    kind: Literal["series"] = "series"
    gain: Course = _course(1.0)
    """About the middle of the sensor's range."""
    offset: Course = _course(0.0)
    """Share of the full scale."""
    noise: Course = _course(0.0)
    """Standard deviation of normal noise on each value, share of the full scale."""
    turned_degrees: Course = _course(0.0)
    """About an axis of the device's own, with the middle of the range as zero; channels are x, y, z
    of one sensor after the other."""

    def seen(
        self, x: NDArray[np.float32], seconds: NDArray[np.float64], seed: int, device: int
    ) -> NDArray[np.float32]:
        """See `SensorKind`. Raises ValueError where channels aren't x, y, z and it is turned."""
        each = {
            name: value.reshape(-1, 1, 1, 1)
            for name, value in self._parameters(seed, device, seconds).items()
        }
        random = generator(seed, "sensor", device)
        axis = random.normal(size=3)
        about_middle: NDArray[Any] = x.astype(np.float64) - 0.5
        if np.any(each["turned_degrees"]):
            about_middle = _turned(about_middle, each["turned_degrees"].ravel(), axis)
        about_middle = each["gain"] * about_middle + each["offset"]
        about_middle += np.maximum(each["noise"], 0.0) * random.normal(size=x.shape)
        return np.clip(about_middle + 0.5, 0.0, 1.0).astype(np.float32)


def _turned(
    x: NDArray[np.float64], degrees: NDArray[np.float64], axis: NDArray[np.float64]
) -> NDArray[np.float64]:
    if x.shape[3] % 3:
        raise ValueError(
            f"sensor.turned_degrees: {x.shape[3]} channels aren't x, y, z of sensors; leave it out"
        )
    about = axis / np.linalg.norm(axis)
    matrices = Rotation.from_rotvec(degrees[:, None] * about, degrees=True).as_matrix()
    sensors = x.reshape(*x.shape[:3], -1, 3)
    turned: NDArray[np.float64] = np.einsum("nij,nhwsj->nhwsi", matrices, sensors)
    return turned.reshape(x.shape)


Sensor = Annotated[ImageSensor | SeriesSensor, Field(discriminator="kind")]


class Stuck(Section):
    """Sensors that stop seeing anything new."""

    share: Share = 0.0
    """Of the devices."""
    after_hours: PositiveRange = (0.0, 0.0)
    """From then on every sample is the last one before; where there was none, the first."""
