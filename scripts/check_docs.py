"""Documentation that can be wrong without anyone noticing: links, anchors, commands.

* A relative link in a Markdown file leads to a file of the repository, and its anchor to a
  heading there.
* A `make TARGET`, `scripts/NAME` or `tinyfleet COMMAND --option` in a code block or code span
  exists.

Prints every violation; the exit code is 1 when there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|<img[^>]+src=\"([^\"]+)\"")
FENCE = re.compile(r"^\s*(```|~~~)(\w*)")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
SPAN = re.compile(r"`([^`]+)`")


def markdown_files() -> list[Path]:
    """Markdown files under version control, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def lines_of(path: Path) -> Iterator[tuple[int, str, bool, str]]:
    """Yield (line number, text, inside a code block, the block's language)."""
    fence, language = "", ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if match and not fence:
            fence, language = match.group(1), match.group(2)
        elif match and match.group(1) == fence:
            fence, language = "", ""
        else:
            yield number, line, bool(fence), language


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """All anchors of a Markdown file; repeated headings get -1, -2 as on GitHub."""
    seen: dict[str, int] = {}
    found = set()
    for _, line, in_code, _ in lines_of(path):
        match = None if in_code else HEADING.match(line)
        if match:
            name = anchor(match.group(2))
            count = seen.get(name, 0)
            seen[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return frozenset(found)


def broken_link(path: Path, target: str) -> str | None:
    """Why a link from ``path`` to ``target`` leads nowhere, or None."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    name, _, fragment = target.partition("#")
    destination = (path.parent / name).resolve() if name else path
    if not destination.is_relative_to(ROOT) or not destination.exists():
        return f"link to {target}: there is no such file"
    if fragment and destination.suffix == ".md" and fragment not in anchors(destination):
        return f"link to {target}: {name or path.name} has no such heading"
    return None


@cache
def make_targets() -> frozenset[str]:
    """Targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^([a-z][\w-]*):", text, flags=re.MULTILINE))


@cache
def command_options() -> dict[str, frozenset[str]]:
    """Every `tinyfleet` command with its options, from the real command line."""
    import typer.main

    from fleet.cli import app

    return dict(_options_of(typer.main.get_command(app), ""))


def _options_of(group: Any, prefix: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Commands, also those in groups ("ca init"), with their options."""
    for name, command in getattr(group, "commands", {}).items():
        yield from _options_of(command, f"{prefix}{name} ")
        names = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        yield f"{prefix}{name}", frozenset(names | {"--help"})


def broken_commands(text: str) -> Iterator[str]:
    """What a piece of code names that doesn't exist."""
    for target in re.findall(r"(?:^|[\s;&])make\s+([a-z][\w-]*)", text):
        if target not in make_targets():
            yield f"make {target}: the Makefile has no such target"
    for script in re.findall(r"(?:^|[\s./])((?:scripts|\.ci)/[\w.-]+)", text):
        if not (ROOT / script.rstrip(".")).exists():
            yield f"{script}: there is no such file"
    for command, rest in re.findall(r"(?:^|[\s/])tinyfleet\s+([a-z][\w-]*)([^\n|;&]*)", text):
        known = command_options()
        below = re.match(r"\s+([a-z][\w-]*)", rest)
        options = known.get(f"{command} {below[1]}" if below else "", known.get(command))
        if options is None:
            yield f"tinyfleet {command}: there is no such command"
            continue
        for option in re.findall(r"(?<![\w-])(--[a-z][\w-]*)", rest):
            if option not in options:
                yield f"tinyfleet {command} {option}: there is no such option"


def violations(path: Path) -> Iterator[str]:
    """All that is wrong with one Markdown file."""
    name = path.relative_to(ROOT)
    for number, line, in_code, language in lines_of(path):
        if in_code:
            pieces = [line.split(" #")[0]] if language in {"", "sh", "bash", "console"} else []
        else:
            pieces = SPAN.findall(line)
            for groups in LINK.findall(SPAN.sub("", line)):
                reason = broken_link(path, groups[0] or groups[1])
                if reason:
                    yield f"{name}:{number}: {reason}"
        for piece in pieces:
            for reason in broken_commands(piece):
                yield f"{name}:{number}: {reason}"


def main() -> int:
    """Check every Markdown file of the repository."""
    found = [line for path in markdown_files() for line in violations(path)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
