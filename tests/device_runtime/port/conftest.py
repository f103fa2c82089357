from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from simulator.machines.elf_image import ElfImage

from .port_machine import BOARDS, PortMachine, build


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ElfImage]:
    """The port's firmware for a board of ``BOARDS``."""
    made: dict[str, ElfImage] = {}

    def image(name: str) -> ElfImage:
        if name not in made:
            made[name] = build(BOARDS[name], tmp_path_factory.mktemp(name))
        return made[name]

    return image


@pytest.fixture
def unbooted(
    request: pytest.FixtureRequest, images: Callable[[str], ElfImage]
) -> Iterator[PortMachine]:
    """At its reset vector; the parameter is the name of a board."""
    name = getattr(request, "param", "stm32f407")
    made = PortMachine(BOARDS[name], images(name))
    yield made
    made.close()


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, images: Callable[[str], ElfImage]
) -> Iterator[PortMachine]:
    """Asleep in its main loop; the parameter is the name of a board."""
    name = getattr(request, "param", "stm32f407")
    made = PortMachine(BOARDS[name], images(name))
    made.boot()
    yield made
    made.close()
