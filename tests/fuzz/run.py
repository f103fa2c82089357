"""Fuzzes the device's parsers with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.

``python tests/fuzz/run.py --seconds 60`` builds every target under ``targets/``, runs each for
its share of the time from the kept corpus under ``corpus/`` and a random seed, and exits with 1
when one crashes, naming the input that makes it crash. New inputs go to a scratch folder;
``--keep`` merges those that reach new code into the kept corpus. ``make test`` gives each target
the same inputs every time instead, ``RUNS`` of them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from codegen.emit.monocypher import write_monocypher
from codegen.emit.zcbor_codec import generate_codec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNTIME = ROOT / "device_runtime"
CDDL = ROOT / "fleet" / "protocol" / "tinyfleet.cddl"
COMPILERS = ("clang", *(f"clang-{version}" for version in range(22, 10, -1)))
FLAGS = ["-std=c99", "-g", "-O1", "-DZCBOR_CANONICAL", "-I", str(RUNTIME / "include")]
SANITIZERS = "-fsanitize=fuzzer,address,undefined"

DELTA = [RUNTIME / "codec" / f"delta_{part}.c" for part in ("encode", "decode", "parameter")]
SOURCES: dict[str, list[Path]] = {
    "mqtt_receive": sorted((RUNTIME / "link").glob("*.c")),
    "cbor_task": [RUNTIME / "codec" / "messages.c"],
    "cbor_receipt": [RUNTIME / "codec" / "messages.c"],
    "cbor_identity": [RUNTIME / "codec" / "messages.c"],
    "chunk": [
        RUNTIME / "client" / "topics.c",
        RUNTIME / "codec" / "chunk.c",
        RUNTIME / "hash" / "crc32.c",
    ],
    "stored": [
        *sorted((RUNTIME / "storage").glob("*.c")),
        *sorted((RUNTIME / "hash").glob("*.c")),
    ],
    "keys": [
        RUNTIME / "codec" / "messages.c",
        *sorted((RUNTIME / "privacy").glob("*.c")),
        *sorted((RUNTIME / "storage").glob("*.c")),
        *sorted((RUNTIME / "hash").glob("*.c")),
    ],
    "delta_decode": [*DELTA, RUNTIME / "hash" / "crc32.c"],
}

RUNS = {
    "mqtt_receive": 30_000,
    "cbor_task": 1_000_000,
    "cbor_receipt": 1_000_000,
    "cbor_identity": 1_000_000,
    "chunk": 300_000,
    "stored": 3_000,
    "keys": 800,
    "delta_decode": 60_000,
}
"""So many inputs take some seconds."""
SAME_EACH_TIME = ["-seed=1", "-shuffle=0", "-reload=0", "-use_cmp=0"]
"""Not guided by operands of comparisons, since addresses are among them."""


class FuzzerMissingError(Exception):
    """There is no clang with libFuzzer here."""


class CrashError(Exception):
    """A target crashed, or took too long or too much memory."""


def find_compiler() -> str:
    """The first clang that links libFuzzer; FuzzerMissingError says what to install."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.c"
        probe.write_text(
            "#include <stddef.h>\n#include <stdint.h>\n"
            "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)\n"
            "{ (void)data; (void)size; return 0; }\n"
        )
        for name in COMPILERS:
            path = shutil.which(name)
            if path is None:
                continue
            command = [path, SANITIZERS, str(probe), "-o", str(probe.with_suffix(""))]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return path
    raise FuzzerMissingError(
        "no clang with libFuzzer found; install clang and its runtime "
        "(Debian: apt install clang libclang-rt-14-dev)"
    )


def build(target: str, folder: Path, compiler: str) -> Path:
    """The fuzzer for ``target``, built in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [HERE / "targets" / f"{target}.c", *SOURCES[target]]
    flags = [*FLAGS, SANITIZERS, "-fno-sanitize-recover=all"]
    generated: list[Path] = []
    if RUNTIME / "codec" / "messages.c" in SOURCES[target]:
        generated += generate_codec(CDDL, folder / "codec")
    if target == "keys":
        generated.append(write_monocypher(folder / "codec").path)
    if generated:
        flags += ["-isystem", str(folder / "codec")]
    foreign: list[str] = []
    for source in generated:
        built = folder / f"{source.stem}.o"
        command = [compiler, *flags, "-w", "-c", str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        foreign.append(str(built))
    program = folder / target
    command = [compiler, *flags, "-Wall", "-Wextra", "-Werror"]
    command += [*map(str, sources), *foreign, "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def fuzz(target: str, program: Path, scratch: Path, seconds: int | None = None) -> str:
    """Runs one fuzzer for some seconds; its last line of statistics.

    Without ``seconds`` it gets the same inputs each time. CrashError names the one that crashed it.
    """
    found = scratch / "corpus" / target
    found.mkdir(parents=True, exist_ok=True)
    crashes = scratch / "crashes"
    crashes.mkdir(exist_ok=True)
    # A list, since the order of a folder's files is the file system's.
    seeds = scratch / f"{target}.seeds"
    kept = sorted(str(path) for path in (HERE / "corpus" / target).glob("*"))
    seeds.write_text(",".join(kept))
    bound = (
        [f"-max_total_time={seconds}"] if seconds else [f"-runs={RUNS[target]}", *SAME_EACH_TIME]
    )
    command = [str(program), *bound, "-timeout=60", "-rss_limit_mb=2048", "-max_len=8192"]
    command += [f"-seed_inputs=@{seeds}"] if kept else []
    command += [f"-artifact_prefix={crashes}/{target}-", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        reproducers = sorted(crashes.glob(f"{target}-*"), key=lambda path: path.stat().st_mtime)
        where = reproducers[-1] if reproducers else "(no input was written)"
        raise CrashError(
            f"{target} crashed; the input that does it: {where}\n{done.stderr[-4000:]}"
        )
    lines = [line for line in done.stderr.splitlines() if re.match(r"#\d", line)]
    return lines[-1] if lines else "no statistics"


def keep(target: str, program: Path, scratch: Path) -> None:
    """Merges what ``fuzz`` found into the kept corpus, as few inputs as reach the same code."""
    kept, merged = HERE / "corpus" / target, scratch / "merged" / target
    kept.mkdir(parents=True, exist_ok=True)
    merged.mkdir(parents=True, exist_ok=True)
    folders = [str(merged), str(kept), str(scratch / "corpus" / target)]
    subprocess.run([str(program), "-set_cover_merge=1", *folders], check=True, capture_output=True)
    for path in kept.iterdir():
        path.unlink()
    for path in merged.iterdir():
        shutil.copy(path, kept / path.name)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 without a crash, 1 with one, 2 where no fuzzer can be built."""
    parser = argparse.ArgumentParser(description="Fuzz the device's parsers.")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=sorted(SOURCES), action="append")
    parser.add_argument("--scratch", type=Path, help="folder for programs and new inputs")
    parser.add_argument("--keep", action="store_true", help="add what was found to corpus/")
    options = parser.parse_args(arguments)
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="tinyfleet-fuzz-"))
    targets = options.target or sorted(SOURCES)
    try:
        compiler = find_compiler()
        for target in targets:
            program = build(target, scratch / "build" / target, compiler)
            share = max(1, options.seconds // len(targets))
            print(f"{target}: {fuzz(target, program, scratch, share)}", flush=True)
            if options.keep:
                keep(target, program, scratch)
    except FuzzerMissingError as error:
        print(error, file=sys.stderr)
        return 2
    except CrashError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
