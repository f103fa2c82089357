"""Both compilers make working images; errors say what is wrong and what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_ARM, UC_HOOK_INTR, UC_MODE_MCLASS, UC_MODE_THUMB, Uc
from unicorn.arm_const import UC_ARM_REG_R0, UC_ARM_REG_SP

from codegen.errors import ToolchainError
from codegen.firmware.boards import Board, load_board
from codegen.firmware.flash_layout import LogNeeds, linker_script, plan_flash
from codegen.firmware.toolchain import find_toolchain
from codegen.host_toolchain import host_toolchain

pytestmark = pytest.mark.usefixtures("own_cache")

STARTUP = r"""
#include <stdint.h>
#include <string.h>
extern uint8_t __stack_top[], __data_start[], __data_end[], __data_load[], __bss_start[],
    __bss_end[], __pool_start[], __pool_end[];
extern char __slot_bytes[];
volatile uint64_t large = 0x123456789abcdefULL;
volatile int64_t negative = -1000000000007LL;
volatile uint32_t divisor = 1000003u;
uint8_t cleared[301];
uint8_t pattern[301];
volatile size_t length = 299;
void Reset_Handler(void);
uint32_t work(void);
uint32_t work(void)
{
    uint32_t failures = 0;
    for (size_t i = 0; i < sizeof pattern; i++) {
        failures |= cleared[i] != 0 ? 1u : 0u;
        pattern[i] = (uint8_t)(i * 7u);
    }
    memcpy(cleared, pattern, length);
    failures |= memcmp(cleared, pattern, length) != 0 ? 2u : 0u;
    failures |= memcmp(cleared, pattern, sizeof pattern) == 0 ? 4u : 0u;
    memmove(cleared + 1, cleared, length);
    failures |= memcmp(cleared + 1, pattern, length) != 0 ? 8u : 0u;
    memset(cleared + 3, 0xa5, length - 4u);
    failures |= cleared[3] != 0xa5 || cleared[297] != 0xa5 || cleared[298] == 0xa5 ? 16u : 0u;
    failures |= large / divisor != EXPECTED_QUOTIENT ? 32u : 0u;
    failures |= large % divisor != EXPECTED_REMAINDER ? 64u : 0u;
    failures |= negative / (int32_t)divisor != -999997LL ? 128u : 0u;
    failures |= (uint32_t)(uintptr_t)__slot_bytes != EXPECTED_SLOT ? 256u : 0u;
    failures |= strlen(TF_BOARD_NAME) != 9u ? 512u : 0u;
    return failures;
}
void Reset_Handler(void)
{
    memcpy(__data_start, __data_load, (size_t)(__data_end - __data_start));
    memset(__bss_start, 0, (size_t)(__bss_end - __bss_start));
    uint32_t result = work();
    __asm volatile("mov r0, %0\n svc 0" : : "r"(result) : "r0");
    for (;;) {
    }
}
__attribute__((section(".vectors"), used)) static const void *const vectors[2] = {
    __stack_top, (const void *)Reset_Handler};
"""


def compilers() -> list[object]:
    without = shutil.which("arm-none-eabi-gcc") is None
    return [
        pytest.param("gcc", marks=pytest.mark.skipif(without, reason="no arm-none-eabi-gcc")),
        "zig",
    ]


def run_image(elf: Path) -> int:
    """Boots an image in an emulator that has flash and SRAM only; returns r0 at the svc."""
    machine = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
    machine.mem_map(0x08000000, 0x100000)
    machine.mem_map(0x20000000, 0x50000)
    with elf.open("rb") as stream:
        image = ELFFile(stream)
        for segment in image.iter_segments("PT_LOAD"):
            if segment["p_filesz"]:
                machine.mem_write(segment["p_paddr"], segment.data())
    top, entry = (int.from_bytes(machine.mem_read(0x08000000 + i, 4), "little") for i in (0, 4))
    machine.reg_write(UC_ARM_REG_SP, top)
    stopped: list[int] = []

    def interrupt(uc: Uc, number: int, data: object) -> None:
        stopped.append(uc.reg_read(UC_ARM_REG_R0))
        uc.emu_stop()

    machine.hook_add(UC_HOOK_INTR, interrupt)
    machine.emu_start(entry | 1, 0xFFFFFFFF, count=1_000_000)
    assert stopped, "the image didn't come to its end"
    return stopped[0]


@pytest.mark.parametrize("kind", compilers())
@pytest.mark.parametrize("board_name", ["stm32f407", "stm32f746"])
def test_an_image_boots_and_has_memory_functions_and_64_bit_division(
    kind: str, board_name: str, tmp_path: Path
) -> None:
    board = load_board(board_name)
    layout = plan_flash(board, 10_000, 50_000, [LogNeeds(64, 3, 60_000)])
    script = tmp_path / "firmware.ld"
    script.write_text(linker_script(board, layout))
    source = tmp_path / "main.c"
    source.write_text(STARTUP)
    quotient, remainder = divmod(0x123456789ABCDEF, 1000003)
    built = find_toolchain(kind).build(  # type: ignore[arg-type]
        [source],
        include_dirs=[],
        defines={
            "EXPECTED_QUOTIENT": f"{quotient}ull",
            "EXPECTED_REMAINDER": f"{remainder}u",
            "EXPECTED_SLOT": f"{min(layout.slot_a.bytes, layout.slot_b.bytes)}u",
        },
        board=board,
        linker_script=script,
        output_elf=tmp_path / "image.elf",
    )
    assert run_image(built.output) == 0


@pytest.mark.parametrize("kind", compilers())
def test_dsp_instructions_and_single_precision_floats_reach_the_board(
    kind: str, tmp_path: Path
) -> None:
    source = tmp_path / "main.c"
    source.write_text(
        "#include <arm_acle.h>\n"
        "#if !defined(__ARM_FEATURE_DSP) || __ARM_FEATURE_DSP != 1\n#error no DSP\n#endif\n"
        "#if !defined(__ARM_FP) || (__ARM_FP & 4) == 0\n#error no FPU\n#endif\n"
        "#if TF_HAVE_DSP != 1\n#error not told\n#endif\n"
        "volatile int32_t a = 3, b = 5;\nvoid Reset_Handler(void);\n"
        "void Reset_Handler(void) { a = __smlad(a, b, 1); for (;;) {} }\n"
    )
    board = load_board("stm32f407")
    script = tmp_path / "firmware.ld"
    script.write_text(linker_script(board, plan_flash(board, 0, 0, [LogNeeds(64, 3, 0)])))
    find_toolchain(kind).build(  # type: ignore[arg-type]
        [source],
        include_dirs=[],
        defines={},
        board=board,
        linker_script=script,
        output_elf=tmp_path / "image.elf",
    )


@pytest.mark.parametrize("kind", compilers())
@pytest.mark.parametrize(
    ("board_name", "changes", "wanted"),
    [
        ("mps2-an383", {}, "__ARM_ARCH == 6"),
        ("mps2-an385", {}, "__ARM_ARCH == 7 && !defined(__ARM_FEATURE_DSP)"),
        ("mps2-an505", {}, "__ARM_ARCH == 8 && defined(__ARM_FEATURE_DSP)"),
        ("mps2-an505", {"dsp": False}, "__ARM_ARCH == 8 && !defined(__ARM_FEATURE_DSP)"),
        ("mps3-an547", {}, "__ARM_FEATURE_MVE && defined(__ARM_FEATURE_DSP)"),
        ("mps3-an547", {"mve": False}, "!__ARM_FEATURE_MVE && defined(__ARM_FEATURE_DSP)"),
    ],
)
def test_a_core_has_the_instructions_that_its_board_says(
    kind: str, board_name: str, changes: dict[str, bool], wanted: str, tmp_path: Path
) -> None:
    board = Board.model_validate(load_board(board_name).model_dump() | changes)
    source = tmp_path / "main.c"
    source.write_text(
        f"#if !({wanted})\n#error another core\n#endif\n"
        "void Reset_Handler(void);\nvoid Reset_Handler(void) { for (;;) {} }\n"
    )
    script = tmp_path / "firmware.ld"
    script.write_text(linker_script(board, plan_flash(board, 0, 0, [LogNeeds(64, 3, 0)])))
    find_toolchain(kind).build(  # type: ignore[arg-type]
        [source],
        include_dirs=[],
        defines={},
        board=board,
        linker_script=script,
        output_elf=tmp_path / "image.elf",
    )


@pytest.mark.parametrize("kind", compilers())
def test_a_broken_source_is_quoted_with_its_line(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int Reset_Handler(void);\nint Reset_Handler(void) { return missing; }\n")
    board = load_board("stm32f746")
    with pytest.raises(ToolchainError, match=r"broken\.c:2.*missing"):
        find_toolchain(kind).build(  # type: ignore[arg-type]
            [source],
            include_dirs=[],
            defines={},
            board=board,
            linker_script=tmp_path / "none.ld",
            output_elf=tmp_path / "image.elf",
        )


def test_the_environment_chooses_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYFLEET_COMPILER", "zig")
    assert find_toolchain().kind == "zig"
    monkeypatch.setenv("TINYFLEET_COMPILER", "tcc")
    with pytest.raises(ToolchainError, match=r"'tcc'.*'gcc' or 'zig'"):
        find_toolchain()


def test_a_missing_compiler_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ToolchainError, match=r"apt install gcc-arm-none-eabi.*TINYFLEET_COMPILER"):
        find_toolchain("gcc")
    assert find_toolchain().kind == "zig"
    assert "zig" in host_toolchain().version
