"""From an ONNX model to a bundle: import, quantize, plan, lower, emit, build, measure.

``compile_model`` is what ``tinyfleet compile`` calls; each stage is a module of its own.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from codegen.arithmetic.layers import logit_scale
from codegen.emit.monocypher import write_monocypher
from codegen.emit.sources import emit
from codegen.emit.zcbor_codec import CODEC_DEFINES, generate_codec
from codegen.errors import ModelError, ToolchainError
from codegen.firmware import graph_file, program_file
from codegen.firmware.boards import Board, load_board
from codegen.firmware.bundle import (
    BOARD,
    FIRMWARE,
    FROZEN,
    GRAPH,
    MANIFEST_FORMAT,
    PROGRAM,
    QUANTIZATION,
    WEIGHTS,
    ActivationInfo,
    BoardInfo,
    Bundle,
    FlashInfo,
    LossInfo,
    Macs,
    ModelInfo,
    PlanInfo,
    PlanReport,
    RegionInfo,
    Report,
    SamplesInfo,
    SegmentInfo,
    TensorInfo,
    WeightsInfo,
    bundle_id,
    check_place,
    write_bundle,
)
from codegen.firmware.flash_fit import FlashPlan, link_where_it_fits
from codegen.firmware.flash_layout import (
    FlashLayout,
    Keep,
    LogNeeds,
    Region,
    layout_defines,
    sample_log_needs,
)
from codegen.firmware.image_sizes import ImageSizes, check_budget, measure_image
from codegen.firmware.model_digest import model_digest, sample_digest
from codegen.firmware.toolchain import Toolchain, find_toolchain
from codegen.graph.floats import LossChoice
from codegen.graph.ir import Graph, Loss, TensorOutput, sample_bytes
from codegen.host_kernels import host_engine_sources
from codegen.host_toolchain import HostToolchain, Progress, Source, host_toolchain
from codegen.importer.labels import Labels
from codegen.importer.loss import check_known
from codegen.importer.model import import_model
from codegen.program import blob
from codegen.program.blob import Weights
from codegen.program.lowering import lower
from codegen.program.plans import (
    DEFAULT_NAMES,
    Plan,
    PlanSpec,
    default_plans,
    load_plan,
    parameter_count,
    resolve,
    runs_of,
)
from codegen.program.steps import Program
from codegen.quantization.calibration import uncoded
from codegen.quantization.model import DEFAULT_OPTIONS, QuantizationOptions, quantize_model
from codegen.quantization.report import QuantizationReport
from device_runtime import firmware_sources, include_directories

Suggest: TypeAlias = Callable[[Program, PlanReport], str]
"""What to train instead of a program that its report shows not to fit."""

LINKER_SCRIPT = "firmware.ld"
_OPTIMIZE = {
    "kernels": "-O3",
    "engine": "-O2",
    "clip.c": "-O2",
    "mask.c": "-O2",
    "loss.c": "-Os",
    "convolution_gradient.c": "-O2",
    "depthwise_gradient.c": "-Os",
    "depthwise_update.c": "-O2",
}
"""By file or folder of the runtime. For the digits a loss takes less than half a percent of a step,
and errors of inputs no more than with -O3: the first two save 1.2 kilobytes, depthwise ones 0.9.
What is heavy of depthwise updates is assembler: -O3 makes the rest a third longer, and a few
percent quicker."""


@dataclass(frozen=True)
class _Build:
    """One build of a set of plans, with everything that the bundle says about it."""

    programs: tuple[Program, ...]
    manifest: dict[str, object]
    files: dict[str, bytes]
    sizes: ImageSizes
    reports: tuple[PlanReport, ...]


def compile_model(
    model: Path | str,
    board: str | Path | Board,
    plans: Sequence[str | PlanSpec] | None,
    calibration: Path | str | None,
    out: Path | str,
    protocol_cddl: Path | str,
    toolchain: Toolchain | None = None,
    progress: Progress | None = None,
    sample_log_bytes: int | None = None,
    samples: Keep = "newest",
    quantization: QuantizationOptions = DEFAULT_OPTIONS,
    suggest: Suggest | None = None,
    publish: Sequence[str | PlanSpec] = (),
    loss: Loss | None = None,
    output: str | None = None,
    guess: bool = True,
) -> Bundle:
    """Compiles ``model`` (ONNX, float or QDQ) for ``board`` into the bundle folder ``out``.

    ``plans`` are ``FILE`` or ``FILE#NAME`` or parsed plans; None takes the default set of three
    sizes, of which those that don't fit the board are left out with a note in the report.
    What any of them trains, also one that is left out, or a plan of ``publish``, is published: the
    rest is frozen. ``publish`` are plans that other boards of a campaign have and this one hasn't.
    ``calibration`` is an .npz of typical inputs, ``quantization`` says what is done with it; both
    are for float models only, but that labels `y` beside the inputs tell any model's loss. A
    quantization report that is asked for is a file of the bundle.
    ``progress`` is called with the stage's name, steps done, and steps in all.
    ``sample_log_bytes`` is the least size of the sample log in flash; None takes room for a few
    dozen samples where the flash has it. ``samples`` says which of them stay when it is full.
    ``suggest`` adds to the error for a plan that doesn't fit what could be trained instead
    (`codegen.plan_search.nearest.suggestion`). ``loss`` says what the model is trained with, where
    neither the model nor labels `y` beside the samples do, ``output`` which of several outputs is
    trained. Where the loss is still a guess, without ``guess`` it is asked for instead.

    Raises a CodegenError whose message names the thing and the remedy.
    """
    tell = progress or _silent
    target = board if isinstance(board, Board) else load_board(board)
    compiler = toolchain or find_toolchain()
    specs, elsewhere = (
        [p if isinstance(p, PlanSpec) else load_plan(p) for p in given]
        for given in (plans or (), publish)
    )

    tell("importing", 0, 1)
    path = Path(model)
    float_graph = import_model(path, loss, calibration, output)
    tell("importing", 1, 1)
    tell("quantizing", 0, 1)
    labelled = Labels.read(calibration) is not None
    told_by_labels = labelled and not uncoded(float_graph)  # which need nothing of the samples
    quantized = quantize_model(float_graph, None if told_by_labels else calibration, quantization)
    if not guess and float_graph.loss_choice is not None:
        check_known(float_graph.loss_choice)
    graph = quantized.graph
    tell("quantizing", 1, 1)
    wanted = [resolve(spec, graph) for spec in specs]
    coarser = {
        plan.id: replace(plan, state="int8-stochastic")
        for spec, plan in zip(specs, wanted, strict=True)
        if spec.state == "auto"
    }
    return compile_graph(
        graph,
        target,
        wanted or None,
        coarser=coarser,
        publish=[resolve(spec, graph) for spec in elsewhere],
        onnx_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        out=Path(out),
        protocol_cddl=Path(protocol_cddl),
        toolchain=compiler,
        progress=tell,
        sample_log_bytes=sample_log_bytes,
        samples=samples,
        model_notes=quantized.notes,
        quantization_report=quantized.report,
        suggest=suggest,
        loss_choice=float_graph.loss_choice,
    )


def compile_graph(
    graph: Graph,
    board: Board,
    plans: Sequence[Plan] | None,
    *,
    onnx_sha256: str,
    out: Path,
    protocol_cddl: Path,
    toolchain: Toolchain,
    progress: Progress | None = None,
    sample_log_bytes: int | None = None,
    samples: Keep = "newest",
    model_notes: Sequence[str] = (),
    quantization_report: QuantizationReport | None = None,
    coarser: Mapping[str, Plan] | None = None,
    suggest: Suggest | None = None,
    publish: Sequence[Plan] = (),
    loss_choice: LossChoice | None = None,
) -> Bundle:
    """The part of ``compile_model`` after quantization; see there.

    ``model_notes`` go first among the report's notes. ``coarser`` has, by id, plans that stand in
    for those of ``plans`` that don't fit the board. ``loss_choice`` says why the head of ``graph``
    has its loss.
    """
    choice = loss_choice or LossChoice(graph.ending.loss, "the graph says so")
    tell = progress or _silent
    wanted = list(plans) if plans else default_plans(graph)
    _distinct(wanted)
    check_place(out)
    weights = blob.published_by(graph, [*wanted, *publish])
    log = sample_log_needs(sample_bytes(graph), sample_log_bytes)
    flash = FlashPlan(board, weights.published.size, weights.frozen.size, log, samples)
    flash.check_weights()
    programs = []
    for index, plan in enumerate(wanted):
        tell("planning", index, len(wanted))
        programs.append(lower(graph, plan))
    tell("planning", len(wanted), len(wanted))
    flash = replace(flash, personal_bytes=max(map(_personal_bytes, programs)))

    def build(chosen: Sequence[Program]) -> _Build:
        return _build(
            graph, flash, chosen, weights, onnx_sha256, protocol_cddl, toolchain, progress
        )

    made = build(programs)
    # The default set of a very small model has fewer sizes; whoever looks for one learns why.
    names = [plan.name for plan in wanted]
    notes = list(model_notes)
    notes += [
        f"plan {name} is left out: it would train the same values as a smaller one"
        for name in DEFAULT_NAMES
        if not plans and graph.ending.loss != "none" and name not in names
    ]
    swapped = [plan for plan in made.reports if not plan.fits and plan.id in (coarser or {})]
    if coarser and swapped:
        notes += [
            f"plan {plan.name} keeps its weights as int8-stochastic: with q8.8 it would need "
            f"{_sram_and_limit(plan, board)}"
            for plan in swapped
        ]
        stand_ins = {plan.id: coarser[plan.id] for plan in swapped}
        programs = [
            lower(graph, stand_ins[p.plan.id]) if p.plan.id in stand_ins else p for p in programs
        ]
        _distinct([program.plan for program in programs])
        made = build(programs)
    over = [plan for plan in made.reports if not plan.fits]
    if over:
        fitting = [p for p, costs in zip(programs, made.reports, strict=True) if costs.fits]
        if plans or not fitting:
            _check_budget(made, board, suggest)
        notes += [
            f"plan {plan.name} is left out: it needs {_sram_and_limit(plan, board)}"
            for plan in over
        ]
        made = build(fitting)
        _check_budget(made, board, suggest)
    if board.engine_only:
        notes.append(
            f"engine only: there is no port for {board.name} yet, so that this firmware has no "
            "line and can't write its flash; its sizes and instructions are what they will be"
        )
    regions = FlashInfo.model_validate(made.manifest["flash"])
    if regions.samples.units == 1:
        notes.append(_log_fills(regions.samples, log[0]))
    report = Report(
        board=board.name,
        loss=LossInfo.of(choice),
        plans=made.reports,
        flash_bytes=made.sizes.flash,
        flash_regions=regions,
        notes=tuple(notes),
    )
    files = dict(made.files)
    if quantization_report is not None:
        files[QUANTIZATION] = (quantization_report.model_dump_json(indent=1) + "\n").encode()
    return write_bundle(out, made.manifest, report, files)


def build_host_engine(
    source: Bundle | tuple[Graph, Sequence[Program]],
    output: Path,
    toolchain: HostToolchain | None = None,
    progress: Progress | None = None,
) -> Path:
    """Builds the training engine with a model as a shared library for this machine.

    ``source`` is a bundle, or a graph with programs (which get an all-zero bundle id, and publish
    what they train). The library is driven by ``codegen.firmware.host_engine.HostEngine``.
    Returns ``output``.
    """
    host = toolchain or host_toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(source, Bundle):
            folder = source.source_folder
            names = [n.removeprefix("src/") for n in source.manifest.files if n.startswith("src/")]
            names = [name for name in names if re.fullmatch(r"(layers|model|plan_\d+)\.c", name)]
        else:
            folder = Path(scratch)
            graph, programs = source
            weights = blob.published_by(graph, [program.plan for program in programs])
            texts = emit(graph, programs, weights, "00" * 32)
            for name, text in texts.items():
                (folder / name).write_text(text)
            names = [name for name in texts if name.endswith(".c")]
        host.build_host(
            host_engine_sources([Source(folder / name) for name in names]),
            include_dirs=[folder, *include_directories()],
            output=output,
            progress=progress,
        )
    return output


def _build(
    graph: Graph,
    flash: FlashPlan,
    programs: Sequence[Program],
    weights: Weights,
    onnx_sha256: str,
    protocol_cddl: Path,
    toolchain: Toolchain,
    progress: Progress | None,
) -> _Build:
    board = flash.board
    manifest = _manifest(graph, board, programs, weights, onnx_sha256, toolchain)
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as scratch:
        folder = Path(scratch) / "src"
        folder.mkdir()
        foreign = [
            *(
                Source(path, optimize="-Os", warnings=False)
                for path in generate_codec(protocol_cddl, folder)
            ),
            write_monocypher(folder),
        ]
        emitted = emit(graph, programs, weights, str(manifest["bundle_id"]))
        for name, text in emitted.items():
            (folder / name).write_text(text)
        script = folder / LINKER_SCRIPT
        try:
            runtime = firmware_sources(board.port)
        except FileNotFoundError as error:
            raise ToolchainError(f"board {board.name}: {error}") from error
        sources = [
            *map(_runtime_source, runtime),
            *(Source(folder / name) for name in emitted if name.endswith(".c")),
            *foreign,
        ]
        elf = Path(scratch) / FIRMWARE

        def link(layout: FlashLayout, text: str) -> None:
            script.write_text(text)
            toolchain.build(
                sources,
                include_dirs=[folder, *include_directories()],
                defines={**CODEC_DEFINES, **layout_defines(board, layout)},
                board=board,
                linker_script=script,
                output_elf=elf,
                progress=progress,
            )

        layout = link_where_it_fits(flash, link, elf)
        manifest["flash"] = _flash_info(layout, flash.keep)
        sizes = measure_image(elf)
        files = {f"src/{item.name}": item.read_bytes() for item in sorted(folder.iterdir())}
        files[FIRMWARE] = elf.read_bytes()
    files[WEIGHTS] = weights.published.pack()
    if weights.frozen.tensors:
        files[FROZEN] = weights.frozen.pack()
    files[GRAPH] = graph_file.pack(graph)
    files[PROGRAM] = program_file.pack(programs)
    files[BOARD] = (board.model_dump_json(indent=1) + "\n").encode()
    reports = tuple(_plan_report(program, sizes, board) for program in programs)
    return _Build(tuple(programs), manifest, files, sizes, reports)


def _manifest(
    graph: Graph,
    board: Board,
    programs: Sequence[Program],
    weights: Weights,
    onnx_sha256: str,
    toolchain: Toolchain,
) -> dict[str, object]:
    published = weights.published
    data = published.pack()
    tensors = [
        TensorInfo(
            name=tensor.name,
            layer=tensor.layer,
            kind=tensor.kind,
            dtype=tensor.dtype,
            shape=tensor.values.shape,
            offset=published.offsets[tensor.name],
            limit=tensor.limit,
            step=tensor.step,
            order=tensor.order,
        )
        for tensor in published.tensors
    ]
    source = graph.tensors[graph.input]
    ending, output = graph.ending, None
    if isinstance(ending, TensorOutput):
        last = graph.tensors[ending.input]
        output = ActivationInfo(shape=last.shape, scale=last.scale, zero_point=last.zero_point)
    model = ModelInfo(
        name=graph.name,
        digest=model_digest(graph, weights),
        sample_digest=sample_digest(graph),
        onnx_sha256=onnx_sha256,
        input=ActivationInfo(shape=source.shape, scale=source.scale, zero_point=source.zero_point),
        classes=ending.outputs,
        parameters=parameter_count(graph),
        logit_scale=logit_scale(graph),
        loss=ending.loss,
        target_scale=ending.target_scale,
        output=output,
    )
    factory = WeightsInfo(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), file=WEIGHTS)
    info = BoardInfo(name=board.name, active_milliwatts=board.active_milliwatts)
    plans = [
        PlanInfo(
            id=program.plan.id,
            name=program.plan.name,
            plan=program.plan.canonical(),
            delta_values=program.delta_values,
            pool_bytes=program.pool_bytes,
            segments=tuple(
                SegmentInfo(
                    tensor=segment.tensor,
                    channels=tuple(runs_of(segment.channels)),
                    values=segment.values,
                    shift=segment.shift,
                    personal=segment.personal,
                )
                for segment in program.segments
            ),
        )
        for program in programs
    ]
    return {
        "format": MANIFEST_FORMAT,
        "bundle_id": bundle_id(info, model, tensors, factory, [plan.id for plan in plans]),
        "model": model,
        "board": info,
        "compiler": toolchain.version,
        "weights": factory,
        "tensors": tuple(tensors),
        "coordinates": sum(tensor.values.size for tensor in published.tensors),
        "plans": tuple(plans),
    }


def _plan_report(program: Program, sizes: ImageSizes, board: Board) -> PlanReport:
    return PlanReport(
        id=program.plan.id,
        name=program.plan.name,
        sram_bytes=sizes.sram(program.pool_bytes - program.state_bytes, program.state_bytes),
        sram_limit_bytes=board.sram_limit_bytes,
        macs=Macs(forward=program.macs_forward, backward=program.macs_backward),
        delta_values=program.delta_values,
        arena_lower_bound_bytes=program.arena_lower_bound_bytes,
        arena_above_bound_bytes=program.arena_bytes - program.arena_lower_bound_bytes,
    )


def _sram_and_limit(plan: PlanReport, board: Board) -> str:
    total, limit = plan.sram_bytes.total, plan.sram_limit_bytes
    return f"{total:,} bytes of SRAM, {board.name} has {limit:,}"


def _check_budget(made: _Build, board: Board, suggest: Suggest | None) -> None:
    program_of = {program.plan.id: program for program in made.programs}
    check_budget(made.reports, board, suggest and (lambda plan: suggest(program_of[plan.id], plan)))


def _personal_bytes(program: Program) -> int:
    """What a device may keep of a plan: personal tensors, and all that it trained alone."""
    personal = program.personal_segments
    if not personal:
        return 0
    return program.kept_bytes(personal) + program.kept_bytes(program.segments)


def _log_fills(log: SamplesInfo, needs: LogNeeds) -> str:
    return (
        f"log fills: the flash leaves the sample log one unit of {log.bytes:,} bytes; with "
        f"{needs.capacity(log.bytes, 1):,} samples in it a device takes no more of them"
    )


def _flash_info(layout: FlashLayout, keep: Keep) -> FlashInfo:
    log = _region(layout.samples)
    return FlashInfo(
        boot=_region(layout.boot),
        identity=_region(layout.identity),
        journal=_region(layout.journal),
        firmware=_region(layout.firmware),
        slot_a=_region(layout.slot_a),
        slot_b=_region(layout.slot_b),
        samples=SamplesInfo(**dict(log), units=layout.samples.units, keep=keep),
        personal=None if layout.personal is None else _region(layout.personal),
    )


def _region(region: Region) -> RegionInfo:
    return RegionInfo(
        flash=region.flash,
        address=region.address,
        bytes=region.bytes,
        sectors=(region.first_sector, region.sector_count),
    )


def _runtime_source(path: Path) -> Source:
    """Kernels are where the time goes, then what draws and masks the values of a delta: these are
    optimized for speed, the rest for size."""
    found = _OPTIMIZE.get(path.name, _OPTIMIZE.get(path.parent.name, "-Os"))
    return Source(path, optimize=found)


def _distinct(plans: Sequence[Plan]) -> None:
    seen: dict[str, str] = {}
    for plan in plans:
        if plan.id in seen:
            raise ModelError(
                f"plans {seen[plan.id]!r} and {plan.name!r} train the same values in the same "
                "way; give one of them"
            )
        seen[plan.id] = plan.name


def _silent(stage: str, done: int, of: int) -> None:
    """Progress that nobody watches."""
