"""Drawings of scores, gates and versions, as SVG within a page. What they show, a text says too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from fleet.dashboard.charts import Chart, bars
from fleet.dashboard.formats import UNKNOWN, percent, plural, points
from fleet.service.schema import FindingView, Scores, VerdictView, VersionView

MOST_VERSIONS = 40
_STEP, _LANE = 92, 54


def scores(title: str, named: Mapping[str, Scores | None]) -> Chart | None:
    """Distributions of accuracies beside each other, in percent of each one's devices; None where
    there is none."""
    known = {name: one for name, one in named.items() if one is not None}
    if not known:
        return None
    parts = len(next(iter(known.values())).counts)
    said = "; ".join(
        f"{name}: {plural(one.devices, 'device')}, half of them at most {percent(one.quantiles[1])}"
        for name, one in known.items()
    )
    return bars(
        title,
        f"{said}.",
        [f"{100 * part // parts} to {100 * (part + 1) // parts} %" for part in range(parts)],
        {name: [100 * count / one.devices for count in one.counts] for name, one in known.items()},
        over="accuracy",
        y_text=lambda share: f"{share:.3g} %",
    )


def _svg(width: int, height: int, label: str, content: str, kind: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">'
        "{}</svg>"
    ).format(kind, width, height, width, height, label, Markup(content))


def gate(verdict: VerdictView, finding: FindingView) -> Markup:
    """What a gate found against its limit: the interval, what was measured, the wrong side."""
    limit = verdict.limit
    if limit is None:
        return Markup("")
    tell = percent if verdict.is_ceiling else points
    known = [one for one in (finding.low, finding.high, finding.measured) if one is not None]
    low, high = min([*known, limit, 0.0]), max([*known, limit, 0.0])
    margin = max(0.02, 0.12 * (high - low))
    low, high = low - margin, high + margin

    def at(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else 10 + 340 * (value - low) / (high - low)

    edge = at(limit, 0)
    begin, end = at(finding.low, 10), at(finding.high, 350)
    wrong = (edge, 350 - edge) if verdict.is_ceiling else (10.0, edge - 10)
    kind = {"pass": "good", "fail": "bad"}.get(finding.outcome, "warning")
    anchor = "start" if edge < 60 else "end" if edge > 300 else "middle"
    shapes = [
        f'<rect class="wrong-side" x="{wrong[0]:.1f}" y="8" width="{max(0, wrong[1]):.1f}" '
        'height="26"/>',
        '<path class="axis" d="M10 21H350"/>',
        f'<path class="gate-limit" d="M{edge:.1f} 4V38"/>',
        f'<text x="{edge:.1f}" y="52" text-anchor="{anchor}">limit {tell(limit)}</text>',
        f'<rect class="fill-{kind}" x="{begin:.1f}" y="18" width="{max(1.0, end - begin):.1f}" '
        'height="6" rx="3"/>',
    ]
    if finding.measured is not None:
        shapes.append(
            f'<circle class="measured {kind}" cx="{at(finding.measured, 0):.1f}" cy="21" r="5"/>'
        )
    said = (
        f"measured {tell(finding.measured)}, between "
        f"{'anything' if finding.low is None else tell(finding.low)} and "
        f"{'anything' if finding.high is None else tell(finding.high)}; "
        f"the limit is {tell(limit)}, {'not above' if verdict.is_ceiling else 'not below'}"
    )
    return _svg(360, 58, said.replace(UNKNOWN, "nothing"), "".join(shapes), "gate-drawing")


def lineage(versions: Sequence[VersionView]) -> Markup:
    """The newest versions of a model from left to right, each joined to what it was made from."""
    shown = list(versions)[-MOST_VERSIONS:]
    if not shown:
        return Markup("")
    lanes = _lanes(shown)
    places = {
        one.version: (48 + _STEP * place, 24 + _LANE * lanes[one.version])
        for place, one in enumerate(shown)
    }
    lines, nodes = [], []
    for one in shown:
        x, y = places[one.version]
        if one.parent in places:
            from_x, from_y = places[one.parent]
            bend = f"C{from_x + 40} {from_y} {x - 40} {y} {x} {y}"
            lines.append(f'<path class="edge" d="M{from_x} {from_y}{bend}"/>')
        kind = {"released": "good", "withdrawn": "bad"}.get(one.state, "running")
        nodes.append(
            f'<circle class="node {kind}" cx="{x}" cy="{y}" r="8"><title>'
            f"{escape(f'{one.model}:{one.version}, {one.state}')}</title></circle>"
            f'<text x="{x}" y="{y + 24}" text-anchor="middle">{one.version} {one.state}</text>'
        )
    width = 96 + _STEP * (len(shown) - 1)
    height = 60 + _LANE * max(lanes.values())
    said = ", ".join(
        f"{one.version} {one.state}" + (f" from {one.parent}" if one.parent else "")
        for one in shown
    )
    return _svg(width, height, f"Versions: {said}", "".join([*lines, *nodes]), "lineage")


def _lanes(versions: Iterable[VersionView]) -> dict[int, int]:
    """The first that was made from a version goes on in its lane, others begin one."""
    lanes: dict[int, int] = {}
    has_child: set[int] = set()
    for one in versions:
        if one.parent in lanes and one.parent not in has_child:
            lanes[one.version] = lanes[one.parent]
            has_child.add(one.parent)
        else:
            lanes[one.version] = 1 + max(lanes.values(), default=-1)
    return lanes
