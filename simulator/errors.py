"""What can go wrong in the simulator.

    SimulatorError
    ├── ImageError      an ELF image doesn't fit the board or lacks a symbol
    ├── MachineFault    the firmware did what its board can't do: address, access, PC, symbol
    ├── MeasureError    a bundle can't be measured
    ├── FleetError      a fleet couldn't be started or controlled
    ├── WorldError      a world's description, or a data set that it names, is wrong
    └── ExperimentError an experiment's file is wrong, or what it asks for can't be done

Every message names the thing and says what to do about it.
"""


class SimulatorError(Exception):
    """Base of everything that the simulator raises."""


class ImageError(SimulatorError):
    """An ELF image doesn't fit the board or lacks a symbol."""


class MachineFault(SimulatorError):
    """The firmware did what its board can't do."""

    def __init__(
        self,
        message: str,
        *,
        address: int | None = None,
        access: str = "",
        pc: int = 0,
        symbol: str = "",
        status: int = 0,
    ) -> None:
        """Keep the parts of ``message`` for programs: ``access`` is read, write, fetch, …

        ``status`` is the bit of CFSR that a real core sets before it enters its fault handler; 0
        for what silicon would let pass or do something else on.
        """
        super().__init__(message)
        self.address = address
        self.access = access
        self.pc = pc
        self.symbol = symbol
        self.status = status


class MeasureError(SimulatorError):
    """A bundle can't be measured."""


class FleetError(SimulatorError):
    """A fleet couldn't be started or controlled."""


class WorldError(SimulatorError):
    """A world's description, or a data set or file that it names, is wrong."""


class ExperimentError(SimulatorError):
    """An experiment's file is wrong, or what it asks for can't be done."""
