"""Parts of a Markdown file that are written by a command, each between two lines that name it. Needs nothing else."""


def with_part(text: str, begin: str, end: str, content: str) -> str:
    """The text with other content between two lines.

    Args:
        text: of the file.
        begin: the line above.
        end: the line below.
        content: what is put between, an empty line apart from both.

    Raises:
        ValueError: a line is missing.
    """
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"lacks the line '{begin}' or '{end}'; put them where it belongs")
    return f"{before}{first}\n\n{content}\n\n{last}{after}"
