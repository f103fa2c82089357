"""Bundles for fleets: codegen's compiler with our protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

from codegen.compile import compile_model
from codegen.firmware.boards import Board
from codegen.firmware.bundle import Bundle
from codegen.firmware.flash_layout import Keep
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Loss
from codegen.plan_search.nearest import suggestion
from codegen.quantization.model import DEFAULT_OPTIONS, QuantizationOptions

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, steps done, steps in all."""


def compile_firmware(
    model: Path,
    board: str | Board,
    plans: Sequence[str],
    calibration: Path | None,
    out: Path,
    *,
    compiler: Literal["gcc", "zig"] | None = None,
    progress: Progress | None = None,
    samples: Keep = "newest",
    quantization: QuantizationOptions = DEFAULT_OPTIONS,
    publish: Sequence[str] = (),
    loss: Loss | None = None,
    output: str | None = None,
    guess: bool = True,
) -> Bundle:
    """Compile ``model`` for ``board`` into the bundle folder ``out``.

    ``plans`` are FILE or FILE#NAME; none at all takes the three that codegen makes for the model.
    Without ``compiler`` it is gcc where that is installed, else zig. ``samples`` says which of them
    stay when a device's log is full. ``quantization`` is for float models, ``loss`` for those that
    don't say theirs, ``output`` for those of several; without ``guess`` a loss that isn't known is
    asked for. What the plans of ``publish`` train is published as well: other boards of a
    campaign have them. Raises `CodegenError`.
    """
    return compile_model(
        model,
        board,
        list(plans) or None,
        calibration,
        out,
        Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
        toolchain=find_toolchain(compiler),
        progress=progress,
        samples=samples,
        quantization=quantization,
        suggest=suggestion,
        publish=publish,
        loss=loss,
        output=output,
        guess=guess,
    )
