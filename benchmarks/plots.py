"""Line charts as SVG files, for the docs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 520, 320  # pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 48, 36  # margins; the legend stands on the right
COLOURS = (
    *("#0b5fa5", "#d1495b", "#2a9d4a", "#e09f3e"),
    *("#6a4c93", "#118ab2", "#555555", "#c17bc1"),
)


def line_chart(
    path: Path,
    lines: Mapping[str, Sequence[float]],
    *,
    ticks: Sequence[str],
    title: str,
    unit: str,
) -> None:
    """Writes lines over evenly spaced ticks; the vertical axis begins at 0.

    Args:
      path: the SVG file; overwritten.
      lines: name → a value at every tick, none below 0.
      ticks: labels of the horizontal axis, at least two.
      title: above the chart.
      unit: of the values, at the top of the vertical axis.
    """
    top = 10 * (int(max(max(values) for values in lines.values())) // 10 + 1)

    def at(n, value):
        x = LEFT + n * (WIDTH - LEFT - RIGHT) / (len(ticks) - 1)
        return x, HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM) / top

    def text(x, y, words, anchor="middle", colour="#333", size=12):
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
            f'font-size="{size}">{escape(words)}</text>'
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 18, title, size=14),
        text(LEFT - 8, TOP - 14, unit, "end"),
    ]
    for value in range(0, top + 1, 10 if top <= 60 else 20):
        (x, y), (end, _) = at(0, value), at(len(ticks) - 1, value)
        parts.append(
            f'<line x1="{x}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(text(x - 8, y + 4, str(value), "end"))
    for n, tick in enumerate(ticks):
        parts.append(text(at(n, 0)[0], HEIGHT - BOTTOM + 20, tick))
    for n, (name, values) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        points = [at(i, value) for i, value in enumerate(values)]
        path_of = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{path_of}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in points
        ]
        y = TOP + 8 + 20 * n
        x = WIDTH - RIGHT + 16
        parts.append(
            f'<line x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        parts.append(text(x + 24, y + 4, name, "start", colour))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
