"""One HTML page that needs nothing else: pictures are inside it, nothing is fetched."""

import base64
from collections.abc import Mapping
from typing import Any

import jinja2

TEMPLATE = "page.html.j2"
_TYPES = {"png": "image/png", "gif": "image/gif", "webp": "image/webp"}


def data_uri(name: str, content: bytes) -> str:
    """A picture as an address that holds the picture; its type is told by the name's ending."""
    return f"data:{_TYPES[name.rpartition('.')[2]]};base64,{base64.b64encode(content).decode()}"


def render_page(images: Mapping[str, bytes], *, template: str = TEMPLATE, **values: Any) -> str:
    """Fills a template.

    Args:
        images: file name to content; the template asks for them by name.
        template: its file beside this one.
        values: everything else the template names; a missing one is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distillery.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    sources = {name: data_uri(name, content) for name, content in images.items()}
    return environment.get_template(template).render(images=sources, **values)
