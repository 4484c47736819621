"""A page of sections as Markdown and as one HTML file without references. It knows nothing of runs or models."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts; the first `names` columns are aligned left, the others are numbers and aligned right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Picture:
    """`name` is that of the image, `caption` what it shows."""

    name: str
    caption: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Line:
    text: str


Block = Table | Picture | Code | Line


@dataclass(frozen=True, kw_only=True)
class Page:
    """`sections` maps titles to blocks, in order."""

    title: str
    sections: Mapping[str, Sequence[Block]]


def to_markdown(page: Page, pictures: str) -> str:
    """The page with links to `<pictures>/<name>.png`. Every text is shown as it is and is never markup."""
    parts = [f"# {_md(page.title)}"]
    for title, blocks in page.sections.items():
        parts += [f"## {_md(title)}", *(_block_md(block, pictures) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def _block_md(block: Block, pictures: str) -> str:
    if isinstance(block, Table):
        dashes = [":--" if place < block.names else "--:" for place in range(len(block.header))]
        rows = [[_md(cell) for cell in row] for row in (block.header, *block.rows)]
        rows.insert(1, dashes)
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if isinstance(block, Picture):
        return f"![{_md(block.caption)}]({pictures}/{block.name}.png)"
    if isinstance(block, Code):
        return "\n".join(f"    {line}" for line in block.text.splitlines())  # no text can end an indented block
    return _md(block.text)


def _md(text: str) -> str:
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def to_html(page: Page, images: Mapping[str, bytes]) -> str:
    """One file that needs no other; `images` maps the pictures' names to PNGs. Every text is escaped."""
    body = [f"<h1>{html.escape(page.title)}</h1>"]
    for title, blocks in page.sections.items():
        body += [f"<h2>{html.escape(title)}</h2>", *(_block_html(block, images) for block in blocks)]
    return _SHELL.format(title=html.escape(page.title), body="\n".join(body))


def _block_html(block: Block, images: Mapping[str, bytes]) -> str:
    if isinstance(block, Table):
        head = _row_html("th", block.header, block.names)
        rows = "\n".join(_row_html("td", row, block.names) for row in block.rows)
        return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    if isinstance(block, Picture):
        data = base64.b64encode(images[block.name]).decode("ascii")
        caption = html.escape(block.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text)}</code></pre>"
    return f"<p>{html.escape(block.text)}</p>"


def _row_html(tag: str, cells: Sequence[str], names: int) -> str:
    opened = (f"<{tag}>" if place < names else f'<{tag} class="n">' for place in range(len(cells)))
    return f"<tr>{''.join(f'{tag_}{html.escape(cell)}</{tag}>' for tag_, cell in zip(opened, cells, strict=True))}</tr>"


# The policy forbids the browser whatever this page does not need, so that no text of a run can fetch or run anything.
_SHELL = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #f3f5f7; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e8eb; --paper: #14171a; --line: #3a4048; --soft: #20252b; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ margin-top: 2.5rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
th {{ background: var(--soft); }}
th.n, td.n {{ text-align: right; }}
td {{ white-space: nowrap; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; background: #ffffff; border-radius: 6px; }}
figcaption {{ font-size: 0.9rem; }}
pre {{ background: var(--soft); padding: 0.8rem; overflow-x: auto; border-radius: 6px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
