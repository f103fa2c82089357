"""Where bundles lie when the command line isn't told."""

from __future__ import annotations

import sys
from pathlib import Path

from codegen.firmware.bundle import MANIFEST
from fleet.cli._errors import CommandError

OUT = Path("out")


def default_folder(model: Path, board: str) -> Path:
    """Folder for the bundle of ``model`` on ``board``, which may be a board's file."""
    return OUT / f"{model.stem}-{Path(board).stem}"


def named_or_newest(bundle: Path | None) -> Path:
    """``bundle``, or the one that was compiled last below ``out``, of which stderr then tells."""
    if bundle is not None:
        return bundle
    manifests = sorted(OUT.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise CommandError(
            f"no bundle named, and none in {OUT}/; make one with tinyfleet compile MODEL.onnx "
            "--board NAME"
        )
    newest = manifests[-1].parent
    print(f"Bundle {newest}, the newest in {OUT}/.", file=sys.stderr)
    return newest
