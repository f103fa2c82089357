"""What a linked image occupies, and whether its plans keep to the board's SRAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from codegen.errors import BudgetError, BundleError
from codegen.firmware.boards import Board
from codegen.firmware.bundle import FlashBytes, PlanReport, SramBytes
from codegen.program import blob

SAMPLE_PREFIX, LINK_PREFIX = "tf_sample_", "tf_link_"


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
