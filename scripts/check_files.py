"""House rules about files: none over 600 lines, none over 400 KB, no machine's own paths; and one
place that makes sessions of onnxruntime, one that says how hypothesis searches.

Prints every violation with its remedy; the exit code is 1 when there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

MAXIMUM_LINES = 600
MAXIMUM_BYTES = 400_000
CODE = {".py", ".c", ".h"}
ORACLE = "onnxruntime_oracle.py"
SESSION = re.compile(r"\bInferenceSession\b")
SEARCH = re.compile(r"^@(?:hypothesis\.)?settings\(")
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|opt/venv|home/\w+|Users/\w+)/")


def tracked(root: Path) -> list[Path]:
    """Files under version control, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return [root / line for line in listed.stdout.splitlines() if (root / line).is_file()]


def violations(path: Path, name: str) -> list[str]:
    """What is wrong with one file, as lines for a person."""
    size = path.stat().st_size
    found = []
    if size > MAXIMUM_BYTES:
        found.append(f"{name}: {size} bytes; keep data over {MAXIMUM_BYTES} bytes out of git")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return found
    lines = text.splitlines()
    if path.suffix in CODE and len(lines) > MAXIMUM_LINES:
        found.append(f"{name}: {len(lines)} lines; split it, {MAXIMUM_LINES} is the limit")
    if name != "scripts/check_files.py":
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: a path of one machine; make it relative")
            if path.suffix == ".py" and path.name != ORACLE and SESSION.search(line):
                found.append(
                    f"{name}:{number}: a session of onnxruntime, whose numbers depend on the CPU; "
                    f"use session() or run() of {ORACLE}, which turn its optimizations off"
                )
            if path.suffix == ".py" and SEARCH.match(line):
                found.append(
                    f"{name}:{number}: settings that make test-long doesn't know; "
                    "use @examples(60) of tests/conftest.py"
                )
    return found


def main() -> int:
    """Check every file of the repository."""
    root = Path(__file__).resolve().parent.parent
    found = [
        line for path in tracked(root) for line in violations(path, str(path.relative_to(root)))
    ]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
