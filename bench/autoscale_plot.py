"""Draws how many slots each scaler had over time, as one SVG without any library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from bench.autoscale_simulation import Result

COLOURS = ("#999999", "#d08770", "#2a6fb0")
WIDTH, HEIGHT = 400, 190
LEFT, TOP, RIGHT, BOTTOM = 40, 30, 10, 28
COLUMNS = 2


def drawing(results: Mapping[str, Mapping[str, Result]]) -> str:
    """A panel for each trace, a line for each scaler; the names of both are the keys."""
    rows = -(-len(results) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 30
    names = list(next(iter(results.values())))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        x = LEFT + 150 * place
        parts.append(f'<path d="M{x} 16h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 30}" y="20">{escape(name)}</text>')
    for number, (trace, by_scaler) in enumerate(results.items()):
        x, y = WIDTH * (number % COLUMNS), 30 + HEIGHT * (number // COLUMNS)
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(trace, list(by_scaler.values()))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(trace: str, results: Sequence[Result]) -> list[str]:
    seconds = max(result.history[-1][0] for result in results)
    slots = max(there for result in results for _second, there in result.history)
    across, up = (WIDTH - LEFT - RIGHT) / seconds, (HEIGHT - TOP - BOTTOM) / max(1, slots)
    floor = HEIGHT - BOTTOM
    parts = [
        f'<text x="{LEFT}" y="{TOP - 8}" font-weight="bold">{escape(trace)}</text>',
        f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" fill="none" stroke="#444444"/>',
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{slots}</text>',
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">0</text>',
        f'<text x="{LEFT + 4}" y="{TOP + 8}" fill="#666666">slots</text>',
    ]
    for minute in range(0, int(seconds // 60) + 1, 5):
        x = LEFT + minute * 60 * across
        parts.append(f'<text x="{x:.0f}" y="{floor + 14}" text-anchor="middle">{minute} min</text>')
    for result, colour in zip(results, COLOURS, strict=True):
        path = f"M{LEFT} {floor}"
        before = -1
        for second, there in result.history:
            if there != before:
                path += f"H{LEFT + second * across:.1f}V{floor - there * up:.1f}"
                before = there
        path += f"H{LEFT + result.history[-1][0] * across:.1f}"
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts
