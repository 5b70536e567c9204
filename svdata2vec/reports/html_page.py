"""Pieces of a page that is one file: pictures are inside as data URIs, so it opens anywhere, without a network."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.shown import shown, shown_lines

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #d5dbe3; } img { max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; border-bottom: 1px solid #e3e8ee; text-align: right; }
td:first-child, th:first-child { text-align: left; } pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; }
figcaption, .note { color: #5b6775; font-size: .9rem; }
"""


def page(title: str, remark: str, sections: Sequence[str]) -> str:
    """The whole document; empty sections leave nothing behind."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{text(title)}</h1>"
        f'{note(remark)}{"".join(sections)}</body></html>'
    )


def text(words: str) -> str:
    """Untrusted words, made fit for a page."""
    return html.escape(shown(words))


def drawn(words: str) -> str:
    """Untrusted words for a figure, with escapes for the letters that its font lacks (Chinese, Hindi and others), which would
    all be drawn as the same box."""
    font = get_font(findfont(FontProperties()))
    return "".join(
        letter if font.get_char_index(ord(letter)) else letter.encode("unicode_escape").decode() for letter in shown(words)
    )


def legend_name(words: str) -> str:
    """`drawn` for a legend, which leaves out what begins with an underscore."""
    return f" {drawn(words)}" if words.startswith("_") else drawn(words)


def preformatted(words: str) -> str:
    """Untrusted lines, as they are."""
    return f"<pre>{html.escape(shown_lines(words))}</pre>"


def section(title: str, body: str) -> str:
    return f"<h2>{text(title)}</h2>{body}" if body else ""


def note(remark: str) -> str:
    return f'<p class="note">{text(remark)}</p>'


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as a picture: whole, or not at all."""
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=dpi)
    write_atomically(path, buffer.getvalue())


def figure_image(figure: Figure | None, caption: str) -> str:
    """A matplotlib figure as a picture; nothing for None. Names with `$` or a backslash are drawn as they are."""
    if figure is None:
        return ""
    buffer = io.BytesIO()
    for words in figure.findobj(Text):
        words.set_parse_math(False)
    with rc_context({"text.parse_math": False}):  # for ticks, which are made when they are drawn
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return image(buffer.getvalue(), caption)


def image(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    words = text(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
