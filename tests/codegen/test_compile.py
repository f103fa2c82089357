"""From a model to a bundle: sizes are the image's, budgets hold, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from codegen.compile import build_host_engine, compile_graph, compile_model
from codegen.errors import BudgetError, BundleError, CalibrationError, CodegenError
from codegen.firmware.boards import Board, load_board
from codegen.firmware.bundle import (
    BoardInfo,
    Bundle,
    bundle_id,
    canonical_json,
    load_bundle,
    write_bundle,
)
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.image_sizes import measure_image
from codegen.firmware.toolchain import find_toolchain
from codegen.importer.model import import_model
from codegen.plan_search.nearest import suggestion
from codegen.program.plans import PlanSpec, WeightSpec
from codegen.program.row_pairs import stored_bytes
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize
from simulator.machines.elf_image import load_elf
from tests.codegen.onnxruntime_oracle import quantize_file
from tests.codegen.random_graphs import random_graph

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "digits" / "digits.onnx"
CALIBRATION = ROOT / "examples" / "digits" / "calibration.npz"
CDDL = ROOT / "fleet" / "protocol" / "tinyfleet.cddl"
WITHOUT_GCC = shutil.which("arm-none-eabi-gcc") is None
COMPILERS = [
    pytest.param("gcc", marks=pytest.mark.skipif(WITHOUT_GCC, reason="no arm-none-eabi-gcc")),
    "zig",
]


def compiled(out: Path, board: str | Board = "stm32f746", **options: Any) -> Bundle:
    plans = options.pop("plans", None)
    return compile_model(MODEL, board, plans, CALIBRATION, out, CDDL, **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compiled(tmp_path_factory.mktemp("compiled") / "bundle")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


@pytest.mark.parametrize("board_name", ["stm32f746", "stm32f407"])
@pytest.mark.parametrize("kind", COMPILERS)
def test_reported_sizes_add_up_to_the_image(kind: Any, board_name: str, tmp_path: Path) -> None:
    made = compiled(tmp_path / "out", board_name, toolchain=find_toolchain(kind))
    board = load_board(board_name)
    with made.firmware.open("rb") as stream:
        image = ELFFile(stream)
        sections = [s for s in image.iter_sections() if s["sh_flags"] & 2 and s["sh_size"]]
        loaded = [s for s in sections if s["sh_type"] == "SHT_PROGBITS"]
        symbols = {s.name: s for s in image.get_section_by_name(".symtab").iter_symbols()}
    flash, regions = made.report.flash_bytes, made.report.flash_regions
    # Sections are aligned, so a few bytes between them belong to none; nor do the sectors between
    # the two pieces.
    assert 0 <= flash.total - sum(s["sh_size"] for s in loaded) < 16
    for section in loaded:
        region = regions.boot if section.name == ".boot" else regions.firmware
        if section["sh_addr"] < board.sram.address:
            end = section["sh_addr"] + section["sh_size"]
            assert region.address <= section["sh_addr"] < end <= region.address + region.bytes
    assert flash.code + flash.weights + flash.frozen == flash.total
    assert flash.weights == made.manifest.weights.bytes
    frozen = symbols.get("tf_frozen_weights")
    assert flash.frozen == (frozen["st_size"] if frozen is not None else 0)
    pool = symbols["__pool_start"]["st_value"]
    for plan, costs in zip(made.manifest.plans, made.report.plans, strict=True):
        sram = costs.sram_bytes
        parts = sram.model_dump(exclude={"total"})
        assert sum(parts.values()) == sram.total <= costs.sram_limit_bytes
        assert sram.arena + sram.state == plan.pool_bytes
        assert sram.total == pool - board.sram.address + plan.pool_bytes
        assert sram.stack == board.stack_bytes
        assert costs.arena_lower_bound_bytes <= sram.arena
        assert costs.macs.forward > 0
        assert costs.delta_values == plan.delta_values
    named = {"samples": "tf_sample_", "link": "tf_link_"}
    for field, prefix in named.items():
        total = sum(
            s["st_size"]
            for name, s in symbols.items()
            if name.startswith(prefix) and s["st_value"] >= board.sram.address
        )
        assert getattr(sram, field) == total > 0


def test_the_manifest_describes_the_blob_and_the_plans(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert [plan.name for plan in manifest.plans] == ["small", "middle", "full"]
    weights = bundle.weights
    assert len(weights) == manifest.weights.bytes
    covered = np.zeros(len(weights), bool)
    for tensor in manifest.tensors:
        size = stored_bytes(tensor.order, tensor.shape, np.dtype(tensor.dtype).itemsize)
        assert not covered[tensor.offset : tensor.offset + size].any()
        covered[tensor.offset : tensor.offset + size] = True
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        values = np.frombuffer(weights, dtype, size // dtype.itemsize, tensor.offset)
        assert np.abs(values.astype(np.int64)).max() <= tensor.limit
        assert len(tensor.step) in (1, tensor.shape[0], tensor.shape[-1])
    assert not np.frombuffer(weights, np.uint8)[~covered].any()
    full = manifest.plan("full")
    assert full.delta_values == manifest.coordinates
    for plan in manifest.plans:
        assert sum(segment.values for segment in plan.segments) == plan.delta_values
    flash = manifest.flash
    assert flash.slot_a.address + flash.slot_a.bytes == flash.slot_b.address
    assert flash.slot_b.address + flash.slot_b.bytes == flash.samples.address
    assert flash.samples.keep == "newest"
    # Where nothing is personal nothing is said of it: such bundles are those of before.
    assert b"personal" not in (bundle.path / "manifest.json").read_bytes()


def test_the_bundle_id_is_the_same_for_both_compilers_and_follows_the_specification(
    bundle: Bundle, tmp_path: Path
) -> None:
    other = compiled(tmp_path / "zig", toolchain=find_toolchain("zig")).manifest
    manifest = bundle.manifest
    assert other.bundle_id == manifest.bundle_id
    ids = [plan.id for plan in manifest.plans]
    parts = (manifest.board, manifest.model, manifest.tensors, manifest.weights)
    assert bundle_id(*parts, ids) == manifest.bundle_id
    assert bundle_id(*parts, ids[:1]) != manifest.bundle_id
    assert bytes.fromhex(manifest.bundle_id) in bundle.firmware.read_bytes()
    assert bytes.fromhex(manifest.weights.sha256) in bundle.firmware.read_bytes()


def test_a_boards_power_is_in_the_manifest_and_not_in_the_bundles_id(bundle: Bundle) -> None:
    manifest = bundle.manifest
    power = load_board("stm32f746").active_milliwatts
    assert json.loads((bundle.path / "manifest.json").read_text())["board"] == {
        "name": "stm32f746",
        "active_milliwatts": power,
    }
    unknown = BoardInfo(name=manifest.board.name)
    assert unknown.model_dump(mode="json") == {"name": "stm32f746"}
    ids = [plan.id for plan in manifest.plans]
    parts = (manifest.model, manifest.tensors, manifest.weights, ids)
    assert bundle_id(unknown, *parts) == bundle_id(manifest.board, *parts) == manifest.bundle_id


def test_a_bundle_of_before_boards_had_a_power_is_read(copy: Path) -> None:
    old = json.loads((copy / "manifest.json").read_text())
    del old["board"]["active_milliwatts"], old["sha256"]
    digest = hashlib.sha256(canonical_json(old)).hexdigest()
    (copy / "manifest.json").write_text(json.dumps({**old, "sha256": digest}))
    assert load_bundle(copy).manifest.board.active_milliwatts is None


def everything() -> PlanSpec:
    layers = [
        op.name for op in quantize(import_model(MODEL), load_calibration(CALIBRATION)).convolutions
    ]
    weights = [WeightSpec(layer=name) for name in layers]
    return PlanSpec(name="everything", biases=layers, weights=weights, state="int8-stochastic")


def test_boards_plans_and_compilers_agree_on_what_weights_mean(
    bundle: Bundle, tmp_path: Path
) -> None:
    other = compiled(
        tmp_path / "other",
        "stm32f407",
        plans=[PlanSpec(name="head"), everything()],
        toolchain=find_toolchain("zig"),
    )
    assert other.manifest.bundle_id != bundle.manifest.bundle_id
    assert other.manifest.model.digest == bundle.manifest.model.digest
    for made in (bundle, other):
        assert bytes.fromhex(made.manifest.model.digest)[:4] in made.firmware.read_bytes()


def test_a_version_of_the_weights_holds_what_the_plans_train_and_no_more(
    bundle: Bundle, tmp_path: Path
) -> None:
    weights = [WeightSpec(layer="b4_pw1", start=3, count=2), WeightSpec(layer="b2_dw")]
    plans = [
        PlanSpec(name="one", biases=["last"], weights=weights[:1], head=False),
        PlanSpec(name="two", biases=["b4_pw1"], weights=weights, head=False),
    ]
    made = compiled(tmp_path / "out", plans=plans)
    names = ["b2_dw.weight", "b4_pw1.weight", "b4_pw1.bias", "last.bias"]
    manifest, whole = made.manifest, bundle.manifest
    assert [tensor.name for tensor in manifest.tensors] == names
    assert manifest.coordinates == sum(int(np.prod(tensor.shape)) for tensor in manifest.tensors)
    assert manifest.model.parameters == whole.model.parameters == whole.coordinates
    assert len(made.weights) == manifest.weights.bytes == made.report.flash_bytes.weights
    sizes = [made.report.flash_bytes, bundle.report.flash_bytes]
    assert sizes[0].weights + sizes[0].frozen == sizes[1].weights + sizes[1].frozen
    assert sizes[1].frozen == 0
    # The published tensors are those of the whole model, and each is in the image once.
    image = made.firmware.read_bytes()
    offsets = {tensor.name: tensor.offset for tensor in whole.tensors}
    for tensor in manifest.tensors:
        length = 4 * tensor.shape[0] if tensor.kind == "bias" else 64
        bits = made.weights[tensor.offset : tensor.offset + length]
        assert bits == bundle.weights[offsets[tensor.name] : offsets[tensor.name] + length]
        assert image.count(bits) == 1
    assert made.weights in image


def test_what_other_boards_train_is_published_as_well(
    bundle: Bundle, limit: int, tmp_path: Path
) -> None:
    """One model has one digest on all boards of a campaign, whatever fits them."""
    tight = compiled(tmp_path / "tight", small_board(limit))
    assert [plan.name for plan in tight.manifest.plans] == ["small", "middle"]
    told = compiled(tmp_path / "told", plans=[PlanSpec(name="head")], publish=[everything()])
    assert [plan.name for plan in told.manifest.plans] == ["head"]
    alone = compiled(tmp_path / "alone", plans=[PlanSpec(name="head")])
    for made in (tight, told):
        assert made.manifest.model.digest == bundle.manifest.model.digest
        assert made.manifest.tensors == bundle.manifest.tensors
        assert made.manifest.weights == bundle.manifest.weights
    assert alone.manifest.model.digest != bundle.manifest.model.digest


def test_a_second_compilation_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    again = compiled(tmp_path / "again")
    for name in [*bundle.manifest.files, "manifest.json"]:
        assert (again.path / name).read_bytes() == (bundle.path / name).read_bytes(), name


def test_progress_tells_stages_that_come_to_their_end(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    compiled(tmp_path / "out", progress=lambda stage, done, of: told.append((stage, done, of)))
    last = {stage: (done, of) for stage, done, of in told}
    assert list(last) == ["importing", "quantizing", "planning", "compiling"]
    assert all(done == of > 0 for done, of in last.values())


def test_a_loaded_bundle_is_the_one_that_was_written(bundle: Bundle, copy: Path) -> None:
    loaded = load_bundle(copy)
    assert loaded.manifest == bundle.manifest
    assert loaded.report == bundle.report


def test_one_flipped_bit_in_any_file_is_refused_by_name(copy: Path) -> None:
    names = [*load_bundle(copy).manifest.files]
    assert {"firmware.elf", "weights.bin", "report.json", "src/model.c"} <= set(names)
    for number, name in enumerate(names):
        file = copy / name
        good = file.read_bytes()
        bad = bytearray(good)
        bad[len(bad) * (number % 7) // 7] ^= 1 << number % 8
        file.write_bytes(bytes(bad))
        with pytest.raises(BundleError, match=r"is damaged.*compile the bundle again") as caught:
            load_bundle(copy)
        assert name in str(caught.value)
        file.write_bytes(good)
    load_bundle(copy)


def test_a_changed_number_in_the_manifest_is_refused(copy: Path) -> None:
    file = copy / "manifest.json"
    content = json.loads(file.read_text())
    content["flash"]["slot_a"]["address"] += 4
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged.*digest"):
        load_bundle(copy)


def test_bytes_of_the_manifest_may_be_anything_and_give_one_error(copy: Path) -> None:
    file = copy / "manifest.json"
    good = file.read_bytes()
    before = load_bundle(copy).manifest
    random = np.random.default_rng(5)
    refused = 0
    for place in random.integers(0, len(good), 60):
        bad = bytearray(good)
        bad[place] ^= int(random.integers(1, 256))
        file.write_bytes(bytes(bad))
        try:
            # A space that became another space changes nothing.
            assert load_bundle(copy).manifest == before
        except BundleError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("name", ["firmware.elf", "weights.bin", "report.json", "src/plan_0.c"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is damaged.*missing"):
        load_bundle(copy)


def test_a_folder_without_manifest_and_another_version_are_no_bundles(
    copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"no bundle.*tinyfleet compile"):
        load_bundle(tmp_path / "nothing")
    content = json.loads((copy / "manifest.json").read_text())
    content["format"] = "tinyfleet-manifest/1"
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"another version: format: .*tinyfleet-manifest/2"):
        load_bundle(copy)


class KilledError(BaseException):
    """Stands for SIGKILL."""


def test_a_compiler_killed_at_any_rename_leaves_the_old_bundle_or_the_new_one(
    bundle: Bundle, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**bundle.manifest.model_dump(mode="json"), "compiler": "another"}
    old, parts = fields.pop("sha256"), fields.pop("files")
    files = {name: (copy / name).read_bytes() for name in parts if name != "report.json"}
    replace = Path.replace
    for survived in range(4):
        left = survived

        def dying(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", dying)
        try:
            write_bundle(copy, fields, bundle.report, files)
        except KilledError:
            assert load_bundle(copy).manifest.sha256 == old
        else:
            assert load_bundle(copy).manifest.compiler == "another"
            return


def test_a_folder_that_is_no_bundle_is_not_overwritten_but_a_bundle_is(
    copy: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match=r"isn't a bundle.*another --out"):
        compiled(precious)
    assert (precious / "thesis.txt").exists()
    with pytest.raises(
        BundleError, match=r"can't be written to .*thesis.txt/mine: .*another --out"
    ):
        compiled(precious / "thesis.txt" / "mine")
    (copy / "src" / "stale.c").write_text("")
    compiled(copy)
    assert not (copy / "src" / "stale.c").exists()


def small_board(limit: int) -> Board:
    return load_board("stm32f746").model_copy(update={"sram_limit_bytes": limit})


@pytest.fixture(scope="module")
def limit(bundle: Bundle) -> int:
    """SRAM that the middle plan fits in exactly."""
    return bundle.report.plans[1].sram_bytes.total


def test_default_plans_that_do_not_fit_are_left_out_with_a_note(tmp_path: Path, limit: int) -> None:
    made = compiled(tmp_path / "out", small_board(limit))
    assert [plan.name for plan in made.manifest.plans] == ["small", "middle"]
    (note,) = (note for note in made.report.notes if "log fills" not in note)
    assert "plan full is left out" in note
    assert f"{limit:,}" in note
    assert made.manifest.plan("small").id in (made.path / "src" / "plan_0.c").read_text()


def test_a_plan_that_was_asked_for_and_does_not_fit_is_refused_with_the_table(
    tmp_path: Path, limit: int
) -> None:
    plans = [
        PlanSpec(name="head-only"),
        PlanSpec.model_validate(
            {
                "name": "greedy",
                "weights": [{"layer": n} for n in ("last", "b4_pw1", "b4_pw2", "b3_pw2")],
            }
        ),
    ]
    with pytest.raises(BudgetError) as caught:
        compiled(tmp_path / "out", small_board(limit), plans=plans, suggest=suggestion)
    text = str(caught.value)
    assert "board stm32f746: greedy" in text
    assert "These plans fit: head-only." in text
    (suggested,) = (line for line in text.splitlines() if line.startswith("The nearest plan"))
    assert suggested.startswith("The nearest plan to greedy that fits trains ")
    nearest = PlanSpec.model_validate_json(suggested.partition(": ")[2])
    made = compiled(tmp_path / "nearest", small_board(limit), plans=[nearest])
    assert made.report.plans[0].sram_bytes.total <= limit
    assert f"({made.report.plans[0].sram_bytes.total:,} bytes of SRAM)" in suggested
    head, *rows = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert head == [
        "plan", "arena", "state", "samples", "link", "data_bss_other", "stack", "total", "limit",
    ]  # fmt: skip
    for row in rows:
        *parts, total, row_limit = (int(cell.replace(",", "")) for cell in row[1:])
        assert sum(parts) == total
        assert row_limit == limit
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", COMPILERS)
def test_a_board_with_no_room_for_the_firmwares_own_data_is_a_budget_error(
    kind: Any, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"own data and stack exceed the SRAM"):
        compiled(tmp_path / "out", small_board(6_000), toolchain=find_toolchain(kind))


@pytest.mark.parametrize("kind", COMPILERS)
@pytest.mark.parametrize("sectors", [[32768] * 4 + [131072], [16384] * 12])
def test_what_the_linked_firmware_leaves_no_room_for_goes_to_the_external_flash(
    kind: Any, sectors: list[int], tmp_path: Path
) -> None:
    described = load_board("stm32f746").model_dump()
    described["flash"]["sectors"] = sectors
    board = Board.model_validate(described)
    made = compiled(tmp_path / "out", board, toolchain=find_toolchain(kind))
    flash = made.manifest.flash
    assert made.report.flash_regions == flash
    assert flash.slot_a.flash == flash.slot_b.flash == "external"
    assert flash.slot_a.address == 0x90000000
    assert flash.slot_a.sectors[0] == len(sectors)
    assert made.report.flash_bytes.total <= flash.boot.bytes + flash.firmware.bytes
    image = load_elf(made.firmware)
    for start, data in image.segments:
        region = flash.boot if start < flash.firmware.address else flash.firmware
        assert region.address <= start <= start + len(data) <= region.address + region.bytes
    assert image.address_of("__slot_a_start") == flash.slot_a.address
    assert image.address_of("__identity_start") == flash.identity.address
    assert "tf_stm32_external_flash" in image.symbols


@pytest.mark.parametrize("kind", COMPILERS)
def test_code_moves_to_the_boot_sector_where_the_sectors_behind_are_too_few(
    kind: Any, tmp_path: Path
) -> None:
    described = load_board("stm32f407").model_dump()
    described["flash"]["sectors"] = [65536, *[16384] * 7, *[65536] * 4]
    board = Board.model_validate(described)
    plan = PlanSpec(name="one")
    alone = compiled(tmp_path / "roomy", "stm32f407", plans=[plan], toolchain=find_toolchain(kind))
    made = compiled(tmp_path / "out", board, plans=[plan], toolchain=find_toolchain(kind))
    flash = made.report.flash_regions
    assert made.report.flash_bytes.total > flash.firmware.bytes
    (boot, boot_code), (firmware, _) = load_elf(made.firmware).segments
    assert (boot, firmware) == (flash.boot.address, flash.firmware.address)
    assert len(boot_code) > 20_000
    # The same code at other places: no more than alignment between its parts differs.
    assert abs(made.report.flash_bytes.total - alone.report.flash_bytes.total) < 512


def test_a_bundle_that_fits_the_internal_flash_has_no_driver_for_another(bundle: Bundle) -> None:
    regions = bundle.report.flash_regions.regions.values()
    assert {region.flash for region in regions} == {"internal"}
    assert "tf_stm32_external_flash" not in load_elf(bundle.firmware).symbols


def test_a_log_larger_than_the_internal_flash_moves_alone(
    tmp_path: Path,
) -> None:
    made = compiled(tmp_path / "out", sample_log_bytes=3_000_000)
    assert made.manifest.flash.samples.flash == "external"
    assert made.manifest.flash.samples.bytes >= 3_000_000
    assert made.manifest.flash.samples.units > 40
    assert made.report.notes == ()
    assert made.manifest.flash.slot_b.flash == "internal"


@pytest.mark.parametrize(("board", "fills"), [("stm32f746", True), ("stm32f407", False)])
def test_the_report_says_where_the_log_fills_and_the_manifest_what_it_keeps(
    board: str, fills: bool, tmp_path: Path
) -> None:
    made = compiled(tmp_path / "out", board, plans=[PlanSpec(name="one")], samples="reservoir")
    log = made.manifest.flash.samples
    assert (log.units == 1, log.keep) == (fills, "reservoir")
    notes = [note for note in made.report.notes if note.startswith("log fills")]
    assert len(notes) == fills
    assert not fills or "262,144 bytes" in notes[0]
    image = load_elf(made.firmware)
    assert image.address_of("__samples_keep") == 1
    assert image.address_of("__samples_units") == log.units


def test_a_plan_of_any_state_takes_the_finest_that_fits(tmp_path: Path) -> None:
    def plan(name: str, state: str) -> PlanSpec:
        weights = [{"layer": "last"}, {"layer": "b4_pw1"}]
        return PlanSpec.model_validate({"name": name, "weights": weights, "state": state})

    coarse = compiled(tmp_path / "coarse", plans=[plan("coarse", "int8-stochastic")])
    wide = compiled(tmp_path / "wide", plans=[plan("any", "auto")])
    assert wide.manifest.plans[0].plan["state"] == "q8.8"
    assert all("log fills" in note for note in wide.report.notes)
    tight = small_board(coarse.report.plans[0].sram_bytes.total)
    narrow = compiled(tmp_path / "narrow", tight, plans=[plan("any", "auto")])
    assert narrow.manifest.plans[0].id == coarse.manifest.plans[0].id
    assert "plan any keeps its weights as int8-stochastic" in narrow.report.notes[0]
    both = [plan("any", "auto"), plan("coarse", "int8-stochastic")]
    with pytest.raises(CodegenError, match=r"'any' and 'coarse' train the same"):
        compiled(tmp_path / "both", tight, plans=both)


def test_two_names_for_one_plan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CodegenError, match=r"'one' and 'two' train the same"):
        compiled(tmp_path / "out", plans=[PlanSpec(name="one"), PlanSpec(name="two")])


def test_a_model_without_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"--calibration"):
        compile_model(MODEL, "stm32f746", None, None, tmp_path / "out", CDDL)


class _Planning(Exception):
    """A compilation has come so far."""


def test_labels_tell_the_loss_of_a_model_that_is_quantized_already(tmp_path: Path) -> None:
    samples = load_calibration(CALIBRATION)[:32]
    quantize_file(MODEL, tmp_path / "model.onnx", samples)

    def stop(stage: str, done: int, of: int) -> None:
        if stage == "planning":
            raise _Planning

    def planned(**arrays: Any) -> None:
        np.savez(tmp_path / "samples.npz", **arrays)
        compile_model(
            tmp_path / "model.onnx", "stm32f746", None, tmp_path / "samples.npz",
            tmp_path / "out", CDDL, guess=False, progress=stop,
        )  # fmt: skip

    labels = np.arange(32) % 10
    with pytest.raises(_Planning):
        planned(x=samples, y=labels)
    with pytest.raises(CalibrationError, match="quantized already and keeps its own scales"):
        planned(x=samples)
    with pytest.raises(
        CalibrationError, match=r"\[31\] for samples of shape \[32, 1, .*one label a"
    ):
        planned(x=samples, y=labels[1:])


def test_the_host_engine_of_a_bundle_runs_each_plan(bundle: Bundle, tmp_path: Path) -> None:
    library = build_host_engine(bundle, tmp_path / "engine.so")
    sample = np.zeros(bundle.manifest.model.input.shape, np.int8)
    logits = []
    for plan in bundle.manifest.plans:
        engine = HostEngine(library, plan.id, bundle.weights)
        engine.score(sample, 0)
        logits.append(engine.logits)
        assert engine.delta().size == plan.delta_values
    assert all(np.array_equal(logits[0], other) for other in logits)


def test_a_random_graph_with_unusual_shapes_becomes_firmware(tmp_path: Path) -> None:
    graph, _ = random_graph(3)
    made = compile_graph(
        graph,
        load_board("stm32f407"),
        None,
        onnx_sha256="0" * 64,
        out=tmp_path / "out",
        protocol_cddl=CDDL,
        toolchain=find_toolchain(),
    )
    assert load_bundle(made.path).manifest.model.name == "random"


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "firmware.elf"
    file.write_bytes(b"no ELF at all")
    with pytest.raises(BundleError, match=r"isn't an image"):
        measure_image(file)
