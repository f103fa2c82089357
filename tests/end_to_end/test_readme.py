"""The commands of the README, run as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = Path(sys.executable).with_name("tinyfleet")


def commands() -> list[list[str]]:
    """`.venv/bin/tinyfleet` of shell blocks, lines joined; `make` is what CI itself runs."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if ".venv/bin/tinyfleet" in line]


def test_readme_commands_do_what_they_say(tmp_path: Path) -> None:
    found = commands()
    assert [words[1] for words in found] == ["compile", "measure", "measure"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shown = []
    for words in found:
        finished = subprocess.run(
            [str(TOOL), *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        shown.append(finished.stdout)
    assert "instructions, training step" in shown[1]
    assert "66 samples held out of 200" in shown[2]


def test_what_operators_are_shown_is_of_the_page_that_is_run() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    page = (ROOT / "docs" / "operate.md").read_text("utf-8")
    part = text[text.index("\n## Operate a fleet\n") :]
    block, shown = re.findall(r"```(?:sh|text)\n(.*?)```", part, re.DOTALL)[:2]
    for line in block.splitlines():
        verbs = re.match(r"tinyfleet(?: [a-z]+)+(?= |$)", line)
        known = line in page.splitlines() or line == ". .venv/bin/activate"
        assert known or (verbs and verbs[0] in page), line
    assert [line for line in shown.splitlines() if line not in page.splitlines()] == []


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_of_the_readme_are_targets_of_the_makefile(target: str) -> None:
    assert f"\nmake {target}" in (ROOT / "README.md").read_text("utf-8")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
