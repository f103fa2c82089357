"""The memory map: what is drawn where, and what can be read in the file."""

import struct
import xml.etree.ElementTree as xml
from dataclasses import dataclass

import matplotlib.patches
import pytest
from matplotlib.figure import Figure

from codegen.firmware.bundle import SramBytes
from codegen.firmware.memory_picture import Effort, draw, overlaps, phases, render
from codegen.firmware.program_file import BufferInfo, ProgramInfo, describe
from codegen.program.lowering import lower
from tests.codegen.random_graphs import full_plan, random_graph

SVG = "{http://www.w3.org/2000/svg}"
SRAM = SramBytes(
    arena=9_008, state=2_345, samples=1_024, link=4_352, data_bss_other=1_616, stack=4_096,
    total=22_441,
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    program: ProgramInfo
    figure: Figure
    svg: bytes

    def texts(self) -> str:
        return " ".join(e.text or "" for e in xml.fromstring(self.svg).iter(f"{SVG}text"))

    def tooltips(self) -> list[str]:
        """Of the drawing; the file has a title of its own."""
        groups = xml.fromstring(self.svg).iter(f"{SVG}g")
        return [title.text or "" for group in groups for title in group.findall(f"{SVG}title")]


@pytest.fixture(scope="module")
def program() -> ProgramInfo:
    graph, _ = random_graph(3, size=8)
    return describe(lower(graph, full_plan(graph)))


@pytest.fixture(scope="module")
def picture(program: ProgramInfo) -> Picture:
    figure = draw(program, "Random, plan full", SRAM, 262_144)
    return Picture(program, figure, render(figure, "svg"))


def test_each_buffer_is_drawn_at_its_place_for_its_time(picture: Picture) -> None:
    drawn = {
        str(patch.get_gid()): (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height())
        for patch in picture.figure.axes[0].patches
        if isinstance(patch, matplotlib.patches.Rectangle) and patch.get_gid()
    }
    assert len(drawn) == len(picture.program.buffers)
    for buffer in picture.program.buffers:
        place = next(at for gid, at in drawn.items() if f" {buffer.name}: " in gid)
        assert place == pytest.approx(
            (
                buffer.first,
                buffer.offset / 1024,
                buffer.last + 1 - buffer.first,
                buffer.bytes / 1024,
            )
        )


def test_the_svg_names_the_largest_buffers_and_describes_all(picture: Picture) -> None:
    texts = picture.texts()
    tensors = [b for b in picture.program.buffers if b.kind in ("activation", "kept")]
    for buffer in sorted(tensors, key=lambda b: -b.bytes)[:6]:
        assert buffer.name.split(" ", 1)[-1] in texts
    assert len(picture.tooltips()) == len(picture.program.buffers)
    for buffer in picture.program.buffers:
        [found] = [t for t in picture.tooltips() if t.startswith(f"{buffer.name}: ")]
        assert f"{buffer.bytes:,} bytes at {buffer.offset:,}" in found


def test_the_svg_says_arena_bound_phases_peak_and_the_images_sram(picture: Picture) -> None:
    texts = picture.texts()
    assert f"arena {picture.program.arena_bytes:,} bytes" in texts
    assert f"peak: step {picture.program.peak_step}" in texts
    for word in ("forward", "backward", "stack 4,096", "22,441 bytes of 262,144", "thousand MACs"):
        assert word in texts


def test_an_arena_above_its_bound_shows_both(program: ProgramInfo) -> None:
    loose = program.model_copy(
        update={"arena_lower_bound_bytes": program.arena_lower_bound_bytes - 64}
    )
    figure = draw(loose, "t")
    texts = Picture(loose, figure, render(figure, "svg")).texts()
    assert f"lower bound {loose.arena_lower_bound_bytes:,} bytes" in texts


def test_measured_instructions_take_the_place_of_macs(program: ProgramInfo) -> None:
    counts = [1_000 * number for number in range(len(program.steps))]
    figure = draw(program, "t", effort=Effort("instructions", counts))
    heights = [
        patch.get_height()
        for patch in figure.axes[1].patches
        if isinstance(patch, matplotlib.patches.Rectangle)
    ]
    assert heights == pytest.approx(list(range(len(program.steps))))
    assert "instructions" in figure.axes[1].get_ylabel()


def test_the_same_program_gives_the_same_file(picture: Picture) -> None:
    again = draw(picture.program, "Random, plan full", SRAM, 262_144)
    assert render(again, "svg") == picture.svg


def test_a_png_has_the_size_of_the_figure(picture: Picture) -> None:
    data = render(picture.figure, "png")
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    inches = picture.figure.get_size_inches()
    assert (width, height) == (int(inches[0] * 130), int(inches[1] * 130))


def renamed(buffer: BufferInfo, names: dict[str, str]) -> BufferInfo:
    over = {names[name]: lead for name, lead in buffer.over.items()}
    return buffer.model_copy(update={"name": names[buffer.name], "over": over})


def test_names_with_markup_and_formulas_are_drawn_as_they_are(program: ProgramInfo) -> None:
    names = {buffer.name: f"activation <{i}> & $x_{i}$" for i, buffer in enumerate(program.buffers)}
    buffers = tuple(renamed(buffer, names) for buffer in program.buffers)
    odd = program.model_copy(update={"buffers": buffers})
    figure = draw(odd, "A & B")
    picture = Picture(odd, figure, render(figure, "svg"))
    largest = max((b for b in odd.buffers if b.kind != "scratch"), key=lambda b: b.bytes)
    assert largest.name.removeprefix("activation ") in picture.texts()
    assert any(t.startswith(f"{largest.name}: ") for t in picture.tooltips())


def test_shared_places_are_those_of_two_buffers_in_the_step_between_them() -> None:
    found = 0
    for seed in range(6):
        graph, _ = random_graph(seed, size=8)
        buffers = describe(lower(graph, full_plan(graph))).buffers
        for old, new, low, high in overlaps(buffers):
            assert old.last == new.first
            assert max(old.offset, new.offset) == low < high
            assert high == min(old.offset + old.bytes, new.offset + new.bytes)
            found += 1
    assert found > 0


def test_phases_cover_all_steps_in_order(program: ProgramInfo) -> None:
    found = list(phases(program.steps))
    assert [name for name, _, _ in found] == ["forward", "loss", "backward"]
    assert [first for _, first, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert found[-1][2] == len(program.steps)
