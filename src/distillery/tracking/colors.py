"""A line's colour in the tracking store: an agent keeps its hue, its experiment shades it.

Left to itself, MLflow draws colours from a short list, and two compared runs may well get the same.
"""

import colorsys
import hashlib

# The agents that stand side by side most often lie far apart; others fall where their name puts them.
_HUES = {"ad": 0.60, "ed": 0.07, "source": 0.38, "random": 0.90, "oracle": 0.15}


def line_color(experiment: str, agent: str) -> str:
    """A colour like ``#1f77b4``, the same for the same names on every machine."""
    hue, shade = _HUES.get(agent, _fraction(agent)), _fraction(experiment)
    rgb = colorsys.hls_to_rgb((hue + 0.16 * (shade - 0.5)) % 1.0, 0.32 + 0.3 * shade, 0.8)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _fraction(name: str) -> float:
    return hashlib.sha256(name.encode()).digest()[0] / 256
