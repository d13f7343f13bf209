"""A self-contained HTML report: no script, no font, no picture from anywhere else. Plots are inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

import numpy as np
from numpy.typing import NDArray

from pipeline.values import NS_PER_S, Float32, Int64

_WIDTH, _LEFT, _RIGHT = 960, 120, 12
_LINE_H, _CELL_H = 110, 13
_BUCKETS = 420  # a line is drawn as the least and the greatest value of each bucket of time

_STYLE = """
:root { --ink:#1f2933; --muted:#66737f; --grid:#d9dee3; --paper:#fff; --accent:#2b6cb0; --expected:#b7791f;
  --bad:#c53030; --fault:#2f855a; }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e9ee; --muted:#9aa7b2; --grid:#37424c; --paper:#151b20;
  --accent:#63b3ed; --expected:#ecc94b; --bad:#fc8181; --fault:#68d391; } }
body { font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--paper);
  max-width:1000px; margin:2rem auto; padding:0 1rem; }
h1 { font-size:1.5rem; } h2 { font-size:1.1rem; margin-top:2.2rem; } p.note { color:var(--muted); }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th,td { text-align:left; padding:.3rem .7rem .3rem 0; border-bottom:1px solid var(--grid); }
svg { width:100%; height:auto; display:block; margin:.2rem 0; } svg text { font-size:11px; fill:var(--muted); }
.frame { fill:none; stroke:var(--grid); } .actual { stroke:var(--accent); } .expected { stroke:var(--expected); }
.threshold { stroke:var(--bad); stroke-dasharray:5 4; } .line { fill:none; stroke-width:1.2; }
.alert { fill:var(--bad); opacity:.14; } .fault { fill:none; stroke:var(--fault); stroke-width:2; }
.cell { fill:var(--bad); }
"""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time to mark: `alert` (shaded) or `fault` (a bar along the top)."""

    start_ns: int
    end_ns: int
    css: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One asset over one stretch of time. n rows, C channels; NaN where there is nothing."""

    title: str
    note: str
    ts_ns: Int64  # (n,)
    ratio: Float32  # (n,)
    share: Float32  # (n, C), each channel's part of the error
    actual: Float32  # (n, C)
    expected: Float32  # (n, C)
    channels: tuple[str, ...]
    shown: tuple[int, ...]  # the channels to draw as lines
    spans: tuple[Span, ...] = ()


def render(title: str, lead: str, header: Sequence[str], rows: Sequence[Sequence[str]], panels: Sequence[Panel]) -> str:
    """Return the report as one HTML document."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    plots = "".join(_panel(p) for p in panels)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        '<p class="note">Shaded: an alert was open. Bar along the top: the injected fault. Blue: measured; amber: what '
        "the model expected; dashed: the threshold (ratio 1.0). Times are UTC.</p>"
        f"{plots}</body></html>\n"
    )


def _panel(panel: Panel) -> str:
    threshold = np.ones_like(panel.ratio)
    parts = [_plot(panel, "score / threshold", [("actual", panel.ratio), ("threshold", threshold)])]
    for c in panel.shown:
        lines = [("expected", panel.expected[:, c]), ("actual", panel.actual[:, c])]
        parts.append(_plot(panel, panel.channels[c], lines))
    parts.append(_heat_map(panel))
    return f'<h2>{escape(panel.title)}</h2><p class="note">{escape(panel.note)}</p>' + "".join(parts)


def _plot(panel: Panel, name: str, lines: Sequence[tuple[str, Float32]]) -> str:
    known = np.concatenate([v[np.isfinite(v)] for _, v in lines])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
    drawn = "".join(f'<path class="line {css}" d="{_path(panel.ts_ns, v, low, high)}"/>' for css, v in lines)
    return _svg(
        _LINE_H + 16,
        _spans(panel, _LINE_H)
        + f'<rect class="frame" x="{_LEFT}" y="0" width="{_WIDTH - _LEFT - _RIGHT}" height="{_LINE_H}"/>{drawn}'
        + _text(_LEFT - 6, 12, f"{high:.3g}", "end")
        + _text(_LEFT - 6, _LINE_H, f"{low:.3g}", "end")
        + _text(4, _LINE_H // 2 + 4, name, "start")
        + _time_labels(panel.ts_ns, _LINE_H + 13),
    )


def _heat_map(panel: Panel) -> str:
    """Draw the channels' shares of the error, where the score is over the threshold darkest."""
    heat = np.nan_to_num(panel.share) * np.minimum(np.nan_to_num(panel.ratio), 2)[:, None] / 2
    bucket, count = _bucket(panel.ts_ns)
    sums = np.zeros((count, len(panel.channels)))
    np.maximum.at(sums, bucket, heat)
    wide = (_WIDTH - _LEFT - _RIGHT) / count
    cells = [
        f'<rect class="cell" x="{_LEFT + b * wide:.1f}" y="{c * _CELL_H}" width="{wide + 0.4:.1f}" '
        f'height="{_CELL_H - 1}" opacity="{sums[b, c]:.2f}"/>'
        for b, c in np.argwhere(sums > 0.03).tolist()
    ]
    names = "".join(_text(_LEFT - 6, (c + 1) * _CELL_H - 3, n, "end") for c, n in enumerate(panel.channels))
    return _svg(len(panel.channels) * _CELL_H + 4, names + "".join(cells))


def _spans(panel: Panel, height: int) -> str:
    out = []
    for span in panel.spans:
        at = _x(np.array([span.start_ns, span.end_ns], np.int64).clip(panel.ts_ns[0], panel.ts_ns[-1]), panel.ts_ns)
        if span.css == "fault":
            out.append(f'<path class="fault" d="M{at[0]:.1f} 2H{at[1]:.1f}"/>')
        else:
            wide = max(at[1] - at[0], 1)
            out.append(f'<rect class="alert" x="{at[0]:.1f}" y="0" width="{wide:.1f}" height="{height}"/>')
    return "".join(out)


def _path(ts_ns: Int64, values: Float32, low: float, high: float) -> str:
    """Return the SVG path of a line, thinned to the least and greatest value of each bucket; a gap breaks it."""
    bucket, count = _bucket(ts_ns)
    least, most = np.full(count, np.inf), np.full(count, -np.inf)
    known = np.isfinite(values)
    np.minimum.at(least, bucket[known], values[known])
    np.maximum.at(most, bucket[known], values[known])
    wide = (_WIDTH - _LEFT - _RIGHT) / count
    out, pen_up = [], True
    for b in range(count):
        if least[b] > most[b]:
            pen_up = True
            continue
        x = _LEFT + (b + 0.5) * wide
        for v in (least[b], most[b]) if most[b] > least[b] else (least[b],):
            y = _LINE_H - 4 - (v - low) / (high - low) * (_LINE_H - 8)
            out.append(f"{'M' if pen_up else 'L'}{x:.1f} {y:.1f}")
            pen_up = False
    return "".join(out)


def _bucket(ts_ns: Int64) -> tuple[NDArray[np.int64], int]:
    count = min(_BUCKETS, len(ts_ns))
    span = max(int(ts_ns[-1] - ts_ns[0]), 1)
    return ((ts_ns - ts_ns[0]) / span * (count - 1)).astype(np.int64), count


def _x(at_ns: Int64, ts_ns: Int64) -> NDArray[np.float64]:
    span = max(int(ts_ns[-1] - ts_ns[0]), 1)
    return np.asarray(_LEFT + (at_ns - ts_ns[0]) / span * (_WIDTH - _LEFT - _RIGHT))


def _time_labels(ts_ns: Int64, y: int) -> str:
    ends = [(_LEFT, int(ts_ns[0]), "start"), (_WIDTH - _RIGHT, int(ts_ns[-1]), "end")]
    return "".join(
        _text(x, y, datetime.fromtimestamp(t / NS_PER_S, UTC).strftime("%Y-%m-%d %H:%M"), a) for x, t, a in ends
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, body: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{body}</svg>'
