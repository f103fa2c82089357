"""Plays what a headless Renode 1.16.1 has said on its console: ``python recorded.py``.

It repeats every command behind a prompt, ends lines in its own way, and its exit code is 0 whatever
happens. ``hang`` never answers, ``die`` ends it, ``linger`` leaves a child that ignores SIGTERM.
"""

from __future__ import annotations

import subprocess
import sys
import time

ANSWERS = {
    'mach create "n1"': "",
    "version": "Renode, version 1.16.1 (d66b0c2a-202611291320)",
    'mach set "nope"': "Machine nope not found.",
    "frob": "No such command or device: frob",
    "include @/nowhere/models.cs": (
        "There was an error executing command 'include @/nowhere/models.cs'\n"
        "Parameters did not match the signature"
    ),
    "include @/tmp/Wrong.cs": (
        "Errors during compilation or loading:\nThere were compilation errors:\n"
        "/tmp/Wrong.cs(262,16): error CS0246: The type or namespace name `Stm32Flash' could not be "
        "found. Are you missing an assembly reference?"
    ),
    "machine LoadPlatformDescription @/tmp/board.repl": (
        "There was an error executing command 'machine LoadPlatformDescription @/tmp/board.repl'\n"
        "Error E04: Could not resolve type: 'Tinyfleet.Stm32Dma'.\n"
        "At /tmp/board.repl:18:1:\n"
        "dma2: Tinyfleet.Stm32Dma @ sysbus 0x40026400\n^^^^"
    ),
    "sysbus.cpu ExecutedInstructions": "0x0000000000064BE2",
    "sysbus ReadBytes 0x08000000 4": "[\n0x00, 0x10, 0x00, 0x20, \n]",
}


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    say("Renode, version 1.16.1 (d66b0c2a-202611291320)\n\r\n")
    prompt = "(monitor)"
    for line in sys.stdin:
        command = line.rstrip("\n")
        say(f"\r{prompt} {command}\n")
        match command.split(" ", 1):
            case ["quit"]:
                say("\rRenode is quitting\r\n\r")
                return
            case ["hang"]:
                time.sleep(600)
            case ["die"]:
                say("\rUnhandled Exception:\r\nSystem.DivideByZeroException\r\n")
                return
            case ["linger"]:
                say("\r")
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        "import signal, time\n"
                        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)",
                    ]
                )
            case ["echo", text]:
                say(f"\r{text.strip(chr(34))}\r\r\n")
            case ["mach", "create " | _] if command in ANSWERS and not ANSWERS[command]:
                prompt = "(n1)"
            case _:
                answer = ANSWERS.get(command, f"No such command or device: {command}")
                say("\r" + answer.replace("\n", "\r\n") + "\r\n" if answer else "")


if __name__ == "__main__":
    main()
