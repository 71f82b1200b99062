"""results/report/*.json -> docs/figures/report.svg: methods side by side on the report pairs, in light and in dark."""

from collections.abc import Mapping
from html import escape
from statistics import fmean, stdev
from typing import Any

from render_report import scores

METHODS = ("scratch", "kd", "ofa", "rsd", "dist", "twin_a", "uhkd")
KINDS = {"cnn": "CNN", "vit": "ViT", "mixer": "MLP-Mixer", "resmlp": "ResMLP"}
_PANEL, _GAP, _ROW, _TOP, _HEAD, _NAMES = (372, 16, 23, 62, 30, 56)
_SCALE = 3.7  # pixels a point of accuracy
# every colour has at least 4.5 : 1 against its ground as text, 3 : 1 as a bar
_STYLE = """
  svg { color-scheme: light dark }
  .ground { fill: #ffffff } .text { fill: #1f2328 } .quiet { fill: #59636e } .mark { stroke: #59636e }
  .value { stroke: #ffffff; stroke-width: 4px; paint-order: stroke }
  .bar { fill: #818b98 } .twin { fill: #b35900 } .ours { fill: #0a6cc2 }
  text { font: 12px system-ui, sans-serif } .head { font-weight: 600; font-size: 14px }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #161b22 } .text { fill: #e6edf3 } .quiet { fill: #9aa4af } .mark { stroke: #9aa4af }
    .value { stroke: #161b22 }
    .bar { fill: #7d8793 } .twin { fill: #d98e32 } .ours { fill: #4a9eea }
  }
"""


def figure(summary: Mapping[str, Any]) -> str:
    """An SVG of mean accuracy (%) with its standard deviation over seeds, a panel a pair; the same numbers in its description."""
    found, pairs = scores(summary), list(summary["pairs"])
    height = _HEAD + len(METHODS) * _ROW + 26
    rows = (len(pairs) + 1) // 2
    width, total = 2 * _PANEL + 3 * _GAP, _TOP + rows * (height + _GAP) + 10
    seeds = len({run["seed"] for run in summary["runs"]})
    title = f"Accuracy (%) on the test part: mean ± standard deviation of {seeds} seeds"
    note = "scratch: no teacher. twin_a: uhkd with pooled maps in place of frequencies."
    panels, captions = [], []
    for at, pair in enumerate(pairs):
        teacher = 100 * summary["pairs"][pair]["teacher"]["accuracy"]
        values = {method: list(found[method][pair].values()) for method in METHODS if pair in found.get(method, {})}
        left, top = _GAP + at % 2 * (_PANEL + _GAP), _TOP + at // 2 * (height + _GAP)
        panels.append(f'<g transform="translate({left} {top})">\n{_panel(pair, teacher, values)}\n</g>')
        captions.append(
            f"{_named(pair)}: teacher {teacher:.1f}, " + ", ".join(f"{m} {fmean(v):.1f}" for m, v in values.items())
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" role="img">',
            f"<title>{escape(summary['title'])}</title>",
            f"<desc>{escape(title)}. {escape(note)} {escape('. '.join(captions))}.</desc>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{width}" height="{total}" rx="8"/>',
            f'<text class="text head" x="{_GAP}" y="22">{escape(summary["title"])}</text>',
            f'<text class="quiet" x="{_GAP}" y="40">{escape(title)}</text>',
            f'<text class="quiet" x="{_GAP}" y="56">{escape(note)}</text>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(pair: str, teacher: float, values: Mapping[str, list[float]]) -> str:
    """One pair: a bar a method, its name before it and its number at its end; the teacher as a dashed line."""
    bottom = _HEAD + len(METHODS) * _ROW
    end = _NAMES + teacher * _SCALE
    parts = [
        f'<text class="text head" x="0" y="20">{escape(_named(pair))}</text>',
        f'<line class="mark" x1="{end:.1f}" x2="{end:.1f}" y1="{_HEAD}" y2="{bottom}" stroke-dasharray="4 3"/>',
        f'<text class="quiet" x="{end:.1f}" y="{bottom + 14}" text-anchor="middle">teacher {teacher:.1f}</text>',
    ]
    for row, method in enumerate(METHODS):
        y = _HEAD + row * _ROW
        parts.append(f'<text class="text" x="0" y="{y + 16}">{escape(method)}</text>')
        if method not in values:
            parts.append(f'<text class="quiet" x="{_NAMES}" y="{y + 16}">not run</text>')
            continue
        mean, spread = fmean(values[method]), stdev(values[method])
        kind = {"uhkd": "ours", "twin_a": "twin"}.get(method, "bar")
        length = mean * _SCALE
        parts += [
            f'<rect class="{kind}" x="{_NAMES}" y="{y + 5}" width="{length:.1f}" height="14" rx="2"/>',
            f'<text class="text value" x="{_NAMES + length + 5:.1f}" y="{y + 16}">{mean:.1f} ± {spread:.1f}</text>',
        ]
    return "\n".join(parts)


def _named(pair: str) -> str:
    teacher, student = pair.split("-")
    return f"{KINDS[teacher]} teaches {KINDS[student]}"
