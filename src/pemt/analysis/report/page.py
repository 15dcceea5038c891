"""From values to a page: templates with escaping on, numbers as people read them, pictures inside.

Every value that somebody wrote (texts, labels, names, messages) goes through the template's
escaping; nothing is marked as safe. A policy in the page's head forbids scripts and the network.
"""

from __future__ import annotations

import base64
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: its file in `templates/`.
        values: what it shows.
    """
    from pemt import __version__

    return _templates().get_template(template).render(**values, version=__version__)


def number(value: Any, digits: int = 3) -> str:
    """A number for people: "0.760", "1,066", "not a number", "-" where there is none."""
    if value is None or isinstance(value, (str, bool)):
        return "-" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else "not a number"


def share(value: Any) -> str:
    """A gate in two digits: ".26", "1.0"; "-" where there is none."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "-"
    return "1.0" if value >= 0.995 else f"{value:.2f}".removeprefix("0")


def tint(value: Any, top: float = 1.0) -> str:
    """How dark a field of a heat map is, from "0.000" to "1.000"."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "0.000"
    return f"{min(1.0, max(0.0, value / top)):.3f}"


def ink(tinted: str) -> str:
    """Classes of a field for the colour of its text, chosen for contrast on either page: the dark
    page's blue is lighter, so its text turns dark earlier than the light page's turns white.
    """
    return " half full" if tinted > "0.880" else " half" if tinted > "0.580" else ""


def picture(content: bytes, kind: str = "image/svg+xml") -> str:
    """An image as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_file(path: Path) -> str | None:
    """The same of a file; None where there is none, or none of our kinds."""
    if path.suffix not in KINDS or not path.is_file():
        return None
    return picture(path.read_bytes(), KINDS[path.suffix])


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pemt.analysis.report", "templates"),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"number": number, "share": share, "tint": tint, "ink": ink}
    return templates
