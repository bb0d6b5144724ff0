"""Small pictures with a number, for readme files."""

from __future__ import annotations

from html import escape
from typing import Final

__all__ = ["badge"]

CHAR_PX: Final = 7
_SVG: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{all}" height="20" role="img" '
    'aria-label="{label}: {value}"><title>{label}: {value}</title>'
    '<rect width="{all}" height="20" rx="3" fill="#0f766e"/>'
    '<rect width="{left}" height="20" rx="3" fill="#3d4852"/>'
    '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" '
    'text-anchor="middle"><text x="{x1}" y="14">{label}</text>'
    '<text x="{x2}" y="14">{value}</text></g></svg>\n'
)


def badge(label: str, value: int) -> str:
    """Return a badge as SVG."""
    left = len(label) * CHAR_PX + 12
    right = len(f"{value:,}") * CHAR_PX + 12
    return _SVG.format(
        all=left + right,
        left=left,
        x1=left / 2,
        x2=left + right / 2,
        label=escape(label),
        value=f"{value:,}",
    )
