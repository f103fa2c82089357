"""A picture of a program's arena over its steps: what fills the SRAM, and when.

Each buffer is a rectangle from its first to its last step, at its place in the arena. Beside it
stands the SRAM of the whole image, so that the arena's share can be seen.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as xml
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from matplotlib.textpath import TextPath

from codegen.firmware.bundle import SramBytes
from codegen.firmware.program_file import BufferInfo, Kind, ProgramInfo, StepInfo

Format = Literal["png", "svg"]

_KIB = 1024
_DPI = 130
_STEP_INCHES, _LEAST_INCHES, _MOST_INCHES = 0.14, 8.0, 36.0
_HEIGHT_INCHES = 8.5
_BAR_INCHES = 2.6
_FONT_POINTS = (8.0, 7.0, 6.0)
_TICK_POINTS = 6.0
_FEWEST_CHARACTERS = 8

# Okabe and Ito's palette, which is told apart with any kind of colour vision.
_COLOURS: dict[Kind, str] = {
    "activation": "#8fcbee",
    "ring": "#3d93c9",
    "kept": "#4fbf9f",
    "mask": "#f0e442",
    "error": "#f2b04d",
    "scratch": "#c4c4c4",
}
_MEANINGS: dict[Kind, str] = {
    "activation": "activation",
    "ring": "ring of rows in a chain",
    "kept": "activation kept for backward",
    "mask": "mask of clamped outputs, places of maxima",
    "error": "error",
    "scratch": "scratch of a kernel",
}
_PEAK_COLOUR = "#a04000"
_PURPOSES = {
    "arena": ("arena", "#ffffff"),
    "state": ("update state", "#cc79a7"),
    "samples": ("samples", "#b8b8b8"),
    "link": ("link", "#9a9a9a"),
    "data_bss_other": ("other data", "#7d7d7d"),
    "stack": ("stack", "#606060"),
}


@dataclass(frozen=True)
class Effort:
    """What each step costs in time: drawn as bars below the map."""

    unit: str
    per_step: Sequence[int]


@matplotlib.rc_context({"text.parse_math": False})  # a layer's name may hold a dollar sign
def draw(
    program: ProgramInfo,
    title: str,
    sram: SramBytes | None = None,
    limit_bytes: int | None = None,
    effort: Effort | None = None,
) -> Figure:
    """The memory map of ``program``.

    ``sram`` adds the bar of the whole image, with the board's ``limit_bytes`` where they are near.
    ``effort`` is the MACs of the steps unless given.
    """
    cost = effort or Effort("MACs", [step.macs for step in program.steps])
    wanted = _STEP_INCHES * len(program.steps)
    width = min(max(wanted, _LEAST_INCHES), _MOST_INCHES)
    beside = _BAR_INCHES if sram else 0.0
    figure = Figure(figsize=(width + beside, _HEIGHT_INCHES), layout="constrained", dpi=_DPI)
    grid = figure.add_gridspec(
        2,
        2 if sram else 1,
        width_ratios=[width, beside] if sram else None,
        height_ratios=[6, 1],
    )
    arena = figure.add_subplot(grid[0, 0])
    bars = figure.add_subplot(grid[1, 0], sharex=arena)
    _arena(arena, program)
    _effort(bars, program, cost, every=max(1, round(wanted / _MOST_INCHES)))
    if sram:
        image = figure.add_subplot(grid[0, 1])
        _image(image, sram, limit_bytes)
        _connect(figure, arena, program.arena_bytes, image, sram.arena)
    kinds = [kind for kind in _COLOURS if any(b.kind == kind for b in program.buffers)]
    figure.legend(
        handles=[Patch(fc=_COLOURS[kind], ec="0.3", label=_MEANINGS[kind]) for kind in kinds],
        loc="outside lower left",
        ncols=len(kinds),
        frameon=False,
        fontsize=8,
    )
    arena.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=18)
    figure.draw_without_rendering()  # lays out, so that the room for labels is known
    _label_buffers(arena, program.buffers)
    return figure


def render(figure: Figure, kind: Format) -> bytes:
    """The file that shows ``figure``: always the same bytes for the same picture.

    An SVG has its texts as texts, which can be searched, and each buffer's name as its tooltip.
    """
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tinyfleet"}):
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return _with_tooltips(file.getvalue()) if kind == "svg" else file.getvalue()


def _arena(axes: Axes, program: ProgramInfo) -> None:
    steps, size = len(program.steps), program.arena_bytes / _KIB
    peak = program.peak_step
    axes.axvspan(peak, peak + 1, color="#d55e00", alpha=0.25, lw=0)
    for buffer in program.buffers:
        axes.add_patch(
            Rectangle(
                (buffer.first, buffer.offset / _KIB),
                buffer.last + 1 - buffer.first,
                buffer.bytes / _KIB,
                facecolor=_COLOURS[buffer.kind],
                edgecolor="0.25",
                linewidth=0.4,
                gid=_TOOLTIP + describe_buffer(buffer),
            )
        )
    for old, new, low, high in overlaps(program.buffers):
        # In the step that makes the one from the other, each has half of the place.
        step = new.first
        for place, kind in ((step, old.kind), (step + 0.5, new.kind)):
            axes.add_patch(
                Rectangle((place, low / _KIB), 0.5, (high - low) / _KIB, fc=_COLOURS[kind], lw=0)
            )
        axes.vlines(step + 0.5, low / _KIB, high / _KIB, color="0.25", lw=0.6, ls=(0, (2, 1)))
    axes.set_xlim(0, steps)
    axes.set_ylim(0, 1.1 * size)
    axes.set_ylabel("arena, KiB")
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    bound = program.arena_lower_bound_bytes
    axes.axhline(size, color="black", lw=1.2)
    text = f"arena {program.arena_bytes:,} bytes"
    if bound == program.arena_bytes:
        text += ", which is the lower bound"
    else:
        axes.axhline(bound / _KIB, color="black", lw=1.0, ls="--")
        text += f"; dashed: lower bound {bound:,} bytes"
    axes.text(steps, size * 1.01, text, ha="right", va="bottom", fontsize=8)
    axes.text(
        peak + 0.5,
        1.1 * size,
        f"peak: step {peak}",
        ha="center"
        if 0.1 * steps < peak < 0.9 * steps
        else "left"
        if peak < steps / 2
        else "right",
        va="bottom",
        fontsize=8,
        color=_PEAK_COLOUR,
    )
    for phase, first, _ in phases(program.steps):
        if first:
            axes.axvline(first, color="0.4", lw=0.8, ls=":")
        if phase != "loss":  # one step wide; its name stands below
            axes.text(first + 0.2, 1.055 * size, phase, fontsize=9, style="italic", va="bottom")


def _effort(axes: Axes, program: ProgramInfo, cost: Effort, every: int) -> None:
    numbers = range(len(program.steps))
    scale, prefix = (1e6, "million ") if max(cost.per_step) >= 1e6 else (1e3, "thousand ")
    axes.bar(
        [number + 0.5 for number in numbers],
        [count / scale for count in cost.per_step],
        width=0.8,
        color="#5a5a5a",
    )
    axes.set_ylabel(f"{prefix}{cost.unit}", fontsize=8)
    axes.set_xlabel("steps", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    shown = list(numbers)[::every]
    axes.set_xticks(
        [number + 0.5 for number in shown],
        [f"{_middle_out(step_label(program.steps[number]), 36)}  {number}" for number in shown],
        rotation=90,
        fontsize=_TICK_POINTS,
    )
    axes.tick_params(axis="x", length=2, pad=1)
    for number, label in zip(shown, axes.get_xticklabels(), strict=True):
        if number == program.peak_step:
            label.set(color=_PEAK_COLOUR, fontweight="bold")
    axes.tick_params(axis="y", labelsize=7)


def _image(axes: Axes, sram: SramBytes, limit_bytes: int | None) -> None:
    sizes = sram.model_dump()
    bottom, labels = 0.0, []
    for purpose, (name, colour) in _PURPOSES.items():
        height = sizes[purpose] / _KIB
        axes.bar(0, height, bottom=bottom, width=1, color=colour, edgecolor="0.25", lw=0.6)
        labels.append((bottom + height / 2, f"{name} {sizes[purpose]:,}"))
        bottom += height
    top = 1.1 * bottom
    title = f"SRAM of the image\n{sram.total:,} bytes"
    if limit_bytes is not None:
        title += f" of {limit_bytes:,}"
        limit = limit_bytes / _KIB
        if limit < 1.5 * bottom:
            top = max(top, 1.04 * limit)
            axes.hlines(limit, -0.7, 0.7, color=_PEAK_COLOUR, lw=1.5)
            axes.text(0.75, limit, "limit", fontsize=8, va="center", color=_PEAK_COLOUR)
    # Texts of thin slices go up as far as they must to be read.
    least, above = top / 36, -top
    for middle, text in labels:
        above = max(middle, above + least)
        axes.annotate(
            text,
            xy=(0.5, middle),
            xytext=(0.75, above),
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4"},
        )
    axes.set_xlim(-0.7, 3.4)
    axes.set_ylim(0, max(top, above + least))
    axes.set_xticks([])
    axes.set_ylabel("KiB", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(title, fontsize=8, loc="left")


def _connect(figure: Figure, arena: Axes, size: int, image: Axes, share: int) -> None:
    """Lines from the map to the arena's share of the image."""
    right = arena.get_xlim()[1]
    for here, there in ((0, 0), (size / _KIB, share / _KIB)):
        figure.add_artist(
            ConnectionPatch(
                (right, here), (-0.5, there), arena.transData, image.transData, color="0.6", lw=0.6
            )
        )


def _label_buffers(axes: Axes, buffers: Sequence[BufferInfo]) -> None:
    """Names and sizes in all rectangles that have room, across where they are wide enough."""
    figure = axes.figure
    points = 72 / figure.dpi
    began = {new.name for _, new, _, _ in overlaps(buffers)}
    ended = {old.name for old, _, _, _ in overlaps(buffers)}
    for buffer in buffers:
        left = buffer.first + (0.5 if buffer.name in began else 0.0)
        right = buffer.last + (0.5 if buffer.name in ended else 1.0)
        low, high = buffer.offset / _KIB, (buffer.offset + buffer.bytes) / _KIB
        corners = axes.transData.transform([(left, low), (right, high)])
        width, height = (float(length) for length in (corners[1] - corners[0]) * points)
        found = _fitting(buffer, width, height)
        if found is None:
            continue
        text, size, across = found
        axes.text(
            (left + right) / 2,
            (low + high) / 2,
            text,
            fontsize=size,
            rotation=0 if across else 90,
            ha="center",
            va="center",
            linespacing=1.0,
            clip_on=True,
            in_layout=False,
        )


def _fitting(buffer: BufferInfo, width: float, height: float) -> tuple[str, float, bool] | None:
    """Text, font size and whether it runs across, for a rectangle of so many points; or None."""
    name, size = short_name(buffer), _amount(buffer.bytes)
    for points in _FONT_POINTS:
        for text in (f"{name}\n{size}", f"{name}  {size}"):
            for across in (True, False):
                room = (width, height) if across else (height, width)
                if _fits(text, points, *room):
                    return text, points, across
    if buffer.kind == "scratch":
        return None
    # A name that is too long loses its middle before it is left out.
    for length in range(len(name), _FEWEST_CHARACTERS - 1, -1):
        text = _middle_out(name, length)
        for across in (True, False):
            if _fits(text, _FONT_POINTS[-1], *((width, height) if across else (height, width))):
                return text, _FONT_POINTS[-1], across
    return None


def _fits(text: str, points: float, width: float, height: float) -> bool:
    lines = text.split("\n")
    if height < 1.2 * points * len(lines):
        return False
    longest = max(_text_width(line, points) for line in lines)
    return longest + 3 <= width


def _text_width(text: str, points: float) -> float:
    return points * sum(map(_character_width, text))


@cache
def _character_width(character: str) -> float:
    """Width in units of the font's size."""

    def width(text: str) -> float:
        return float(TextPath((0, 0), text, size=100).get_extents().width)

    return (width(f"|{character}|") - width("||")) / 100


def _middle_out(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    kept = length - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def short_name(buffer: BufferInfo) -> str:
    """The buffer's name without what its colour says."""
    return buffer.name.removeprefix("activation ").removeprefix("mask ").removeprefix("error ")


def describe_buffer(buffer: BufferInfo) -> str:
    """One line about a buffer."""
    return (
        f"{buffer.name}: {_MEANINGS[buffer.kind]}, {buffer.bytes:,} bytes at {buffer.offset:,}, "
        f"steps {buffer.first} to {buffer.last}"
    )


def step_label(step: StepInfo) -> str:
    """What a step does, as short as can be."""
    if step.chain is not None:
        return f"{step.chain.stages[0].layer} … {step.layer}"
    if step.phase == "forward":
        return step.layer
    # The layer's own kind says whether it is a convolution, the head or the pooling.
    return f"{step.layer} {re.sub('^(convolution|depthwise|head|pool)_', '', step.kernel)}"


def phases(steps: Sequence[StepInfo]) -> Iterator[tuple[str, int, int]]:
    """Each phase with its first step and the one after its last."""
    first = 0
    for number, step in enumerate(steps):
        if number + 1 == len(steps) or steps[number + 1].phase != step.phase:
            yield step.phase, first, number + 1
            first = number + 1


def overlaps(
    buffers: Sequence[BufferInfo],
) -> Iterator[tuple[BufferInfo, BufferInfo, int, int]]:
    """Old and new buffer, first and end byte of the places that two share while one is made."""
    by_name = {buffer.name: buffer for buffer in buffers}
    for new in buffers:
        for name in new.over:
            old = by_name[name]
            low = max(new.offset, old.offset)
            high = min(new.offset + new.bytes, old.offset + old.bytes)
            if low < high:
                yield old, new, low, high


def _amount(size: int) -> str:
    return f"{size / _KIB:.1f} KiB" if size >= _KIB else f"{size} B"


# Tooltips: matplotlib writes a patch's gid as the id of its group, which becomes a title.

_TOOLTIP = "tooltip "
_SVG = "http://www.w3.org/2000/svg"


def _with_tooltips(svg: bytes) -> bytes:
    xml.register_namespace("", _SVG)
    xml.register_namespace("cc", "http://creativecommons.org/ns#")
    xml.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = xml.fromstring(svg)
    for style in root.iter(f"{{{_SVG}}}style"):
        # A label doesn't hide the tooltip of the rectangle below it.
        style.text = f"{style.text or ''} text {{pointer-events: none}}"
    for group in root.iter(f"{{{_SVG}}}g"):
        text = group.get("id", "")
        if text.startswith(_TOOLTIP):
            del group.attrib["id"]
            title = xml.Element(f"{{{_SVG}}}title")
            title.text = text.removeprefix(_TOOLTIP)
            group.insert(0, title)
    written: bytes = xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return written
