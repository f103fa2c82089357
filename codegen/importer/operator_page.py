"""The page of ONNX operators, docs/specification/operators.md, from the importer's table.

``python -m codegen.importer.operator_page`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from codegen.importer.handlers import HANDLERS, REMEDIES
from codegen.importer.model import OLDEST_OPSET
from codegen.importer.qoperator import QOPERATORS
from codegen.importer.quant import QUANT

PAGE = Path("docs") / "specification" / "operators.md"


def page() -> str:
    """The page in Markdown."""
    rows = [
        f"| `{name}` | {handler.becomes} | {handler.limits} |"
        for name, handler in sorted(HANDLERS.items())
    ]
    refused = [f"| `{name}` | {remedy} |" for name, remedy in sorted(REMEDIES.items())]
    return "\n".join(
        [
            "# Operators",
            "",
            f"What the compiler makes of ONNX's operators, opset {OLDEST_OPSET} or later, to which "
            "it converts older files. What depends",
            "on constants and shapes alone is computed when a model is compiled, with any "
            "operator.",
            "`python -m codegen.importer.operator_page` writes this page from "
            "[`HANDLERS`](../../codegen/importer/handlers.py).",
            "",
            "| operator | becomes | not taken |",
            "|---|---|---|",
            *rows,
            "",
            "## Integer operators",
            "",
            "What computes with codes and their scales is read as what it stands for: "
            "DequantizeLinear, the operator in",
            "real numbers, QuantizeLinear. With the limits of that operator, channels first or "
            "last, these are:",
            ", ".join(f"`{name}`" for name in QOPERATORS) + ".",
            "",
            "QONNX's Quant, rounded half to even, is read as QuantizeLinear, Clip and "
            "DequantizeLinear: constants of any width, activations of up to 8 bits and",
            "one scale. It goes by the names " + ", ".join(f"`{name}`" for name in QUANT) + ".",
            "",
            "## What is refused with a remedy",
            "",
            "Any other operator is refused by its name, and by the name of its node. Of these the "
            "message says more:",
            "",
            "| operator | in its place |",
            "|---|---|",
            *refused,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
