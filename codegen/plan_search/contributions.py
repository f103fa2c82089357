"""What training each candidate alone is worth, and the file that an analysis is resumed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codegen.errors import PlanError
from codegen.firmware.bundle import canonical_json

FORMAT = "tinyfleet-contributions/1"
Method = Literal["finetune", "fisher"]


@dataclass(frozen=True)
class Contributions:
    """Gain of each candidate, trained alone, in ``unit``; a search never takes a negative one.

    ``biases[k]`` is the gain of training the biases of the last k convolutions, 0 for k = 0;
    depths beyond the tuple were not analysed. ``weights`` maps a layer to {channels: gain}, the
    gain over training biases alone. The sum over a plan predicts its gain: that gains add up is
    an assumption (arXiv 2206.15472, section 3.2), to be checked by training the plan.
    """

    method: Method
    unit: str
    biases: tuple[float, ...]
    weights: Mapping[str, Mapping[int, float]]

    def to_json(self) -> dict[str, Any]:
        """For programs: the fields, channel counts as text."""
        return {
            "method": self.method,
            "unit": self.unit,
            "biases": list(self.biases),
            "weights": {
                layer: {str(count): gain for count, gain in gains.items()}
                for layer, gains in self.weights.items()
            },
        }


class Journal:
    """Results of an analysis, one JSON object per line, written as they come.

    The first line names what the results belong to; a file of other inputs is begun anew. A run
    that was killed finds what it had finished; half a line at the end is dropped.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        """Opens ``path``; None keeps results in memory only. ``identity`` is plain JSON.

        Raises PlanError for a file that is there and isn't a journal.
        """
        self._path = path
        self._results: dict[str, Any] = {}
        self._key = hashlib.sha256(canonical_json(dict(identity))).hexdigest()
        if path is None:
            return
        lines = list(_lines(path))
        if lines and lines[0].get("format") != FORMAT:
            raise PlanError(f"{path} exists and holds no contributions; choose another --out")
        if lines and lines[0].get("of") == self._key:
            self._results = {str(line["name"]): line["result"] for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = [{"format": FORMAT, "of": self._key}, *self._entries()]
        replacement = path.with_name(path.name + ".new")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in whole), "utf-8")
        replacement.replace(path)

    def _entries(self) -> Iterator[dict[str, Any]]:
        for name, result in self._results.items():
            yield {"name": name, "result": result}

    def __contains__(self, name: str) -> bool:
        """Whether ``name`` has been finished."""
        return name in self._results

    def __getitem__(self, name: str) -> Any:
        """The result of ``name``."""
        return self._results[name]

    def add(self, name: str, result: Any) -> None:
        """Keeps a result, on disk before the next one begins."""
        self._results[name] = result
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"name": name, "result": result}) + "\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of ``path``; nothing where it isn't there."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        yield {}
        return
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            # Half a line of a killed run, unless it is the first: then the file isn't ours.
            if line == text.splitlines()[0]:
                yield {}
            return
        yield entry
