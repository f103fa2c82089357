"""Virtual time for devices and everything else: windows in which devices go on side by side."""

from __future__ import annotations

from collections.abc import Callable

from fleet.clock import Clock, VirtualClock
from simulator.clock import SECOND
from simulator.virtual.device import NEVER, Arrival, Said
from simulator.virtual.line import LEAST_NANOSECONDS
from simulator.virtual.pool import DevicePool


class WindowClock(VirtualClock):
    """A `VirtualClock` to which devices belong; see `simulator.virtual.pool`."""

    def __init__(
        self,
        pool: DevicePool,
        hears: Callable[[Said], None],
        window: int = LEAST_NANOSECONDS,
        wall: float = 1_700_000_000.0,
    ) -> None:
        """``hears`` is called at `Said.at`; no line may be faster than ``window`` nanoseconds."""
        super().__init__(wall)
        self._pool = pool
        self._hears = hears
        self._window = window
        self._arrivals: dict[int, list[Arrival]] = {}
        self._first_arrival = NEVER

    @property
    def now(self) -> int:
        """Nanoseconds of the monotonic clock."""
        return nanoseconds(self.monotonic())

    def to_device(self, number: int, arrival: Arrival) -> None:
        """Something is on its way to a device, for the length of a window at least."""
        self._arrivals.setdefault(number, []).append(arrival)
        self._first_arrival = min(self._first_arrival, arrival.at)

    def sleep(self, seconds: float) -> None:
        """See `VirtualClock`."""
        self.wait(seconds, lambda: False)

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        """Let time pass until ``is_over``, which is asked after every window, or so long."""
        end = self.monotonic() + max(0.0, seconds)
        while not is_over():
            due = min(nanoseconds(self.next_due), self._pool.next_due, self._first_arrival)
            # A window has whole nanoseconds, and what is due in the last one may be between them.
            if due >= nanoseconds(end) - 1:
                self.run_until(end)
                return
            self._run_window(min(due + self._window, nanoseconds(end)))

    def _run_window(self, end: int) -> None:
        arrivals, self._arrivals = self._arrivals, {}
        self._first_arrival = NEVER
        self._pool.begin(end, arrivals)
        self.run_until((end - 1) / SECOND)
        for one in self._pool.finish():
            self._call(one)

    def _call(self, one: Said) -> None:
        self.call_at(one.at / SECOND, lambda: self._hears(one))


class OwnWall:
    """A machine's own time of day, which steps without that of others; a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        """As ``clock`` is, at first."""
        self._clock = clock
        self._ahead = 0.0

    def step_wall(self, seconds: float) -> None:
        """Set it forward, or back where negative."""
        self._ahead += seconds

    def monotonic(self) -> float:
        """See `Clock`."""
        return self._clock.monotonic()

    def wall(self) -> float:
        """See `Clock`."""
        return self._clock.wall() + self._ahead

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        self._clock.sleep(seconds)


def nanoseconds(seconds: float) -> int:
    """As integer; what is beyond all time is `NEVER`."""
    return round(seconds * SECOND) if seconds < NEVER / SECOND else NEVER
