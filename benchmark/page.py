"""A page as a list of blocks, and what it is written as: Markdown, one self-contained HTML page, CSV, PNG.

    page = [heading("Scores"), text("Mean over seeds."), table("table1", ["task", "score"], [["hopper", "31.1"]])]
    write(page, Path("report"))
"""

import base64
import csv
import html
import io
import math
import re
from collections.abc import Iterable
from pathlib import Path

Page = list[tuple]


def heading(words: str) -> tuple:
    return "heading", words


def contents() -> tuple:
    """The table of contents: all headings, linked."""
    return ("contents",)


def text(words: str) -> tuple:
    return "text", words


def table(name: str, head: list[str], rows: list[list[str]]) -> tuple:
    """`name` becomes that of the CSV file."""
    return "table", name, head, rows


def folded(words: str, page: Page) -> tuple:
    """Text and tables that a click on `words` shows."""
    return "folded", words, page


def number(value: float, form: str = ".1f") -> str:
    """As it stands in a table; – for NaN."""
    return "–" if math.isnan(value) else format(value, form)


def ranged(value: float, low: float, high: float, form: str = ".1f") -> str:
    """A number and its interval, which is left out where it is not known (NaN)."""
    return number(value, form) + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def figure(rows: int, columns: int, width: float, height: float, **options):
    """A matplotlib figure and its axes, (rows, columns); width and height of one panel in inches."""
    from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no state between pictures

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure) -> None:
    """One legend below all panels: of lines with the same label the first, the topmost line first."""
    lines = {line.get_label(): line for axis in reversed(figure.axes) for line in axis.get_lines()}
    lines = dict(sorted(lines.items(), key=lambda item: -item[1].get_zorder()))
    columns = max(1, int(14 * figure.get_figwidth() / (max(map(len, lines)) + 6)))  # that fit side by side
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=8)


def lighter(color: str, share: float) -> tuple[float, ...]:
    """A colour (#rrggbb) mixed with this share of white."""
    return tuple((1 - share) * int(color[i : i + 2], 16) / 255 + share for i in (1, 3, 5))


def picture(name: str, figure, caption: str) -> tuple:
    """The figure, drawn; `name` becomes that of the PNG file."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=100, metadata={"Software": None})  # else it holds matplotlib's version
    return "picture", name, memory.getvalue(), caption


def anchor(words: str) -> str:
    """The name under which GitHub's Markdown links to a heading."""
    return re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")


def headings(page: Page) -> list[str]:
    return [block[1] for block in page if block[0] == "heading"]


def markdown(page: Page) -> str:
    parts = []
    for kind, *content in page:
        if kind == "contents":
            parts.append("\n".join(f"- [{words}](#{anchor(words)})" for words in headings(page)))
        elif kind == "table":
            _, head, rows = content
            lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        elif kind == "picture":
            name, _, caption = content
            parts.append(f"![{caption}]({name}.png)\n\n{caption}")
        elif kind == "folded":
            inner = markdown(content[1])
            parts.append(f"<details><summary>{html.escape(content[0])}</summary>\n\n{inner}\n</details>")
        else:
            parts.append("## " * (kind == "heading") + content[0])
    return "\n\n".join(parts) + "\n"


HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Report</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
div { overflow-x: auto; }
img { max-width: 100%; }
summary { cursor: pointer; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: 2px 10px; text-align: left; white-space: nowrap; }
</style>
<h1>Report</h1>
"""


def webpage(page: Page) -> str:
    parts = []
    for kind, *content in page:
        if kind == "contents":
            links = [f'<li><a href="#{anchor(words)}">{html.escape(words)}</a></li>' for words in headings(page)]
            parts.append("<ul>\n" + "\n".join(links) + "\n</ul>")
        elif kind == "table":
            _, head, rows = content
            lines = [[f"<th>{html.escape(cell)}</th>" for cell in head]]
            lines += [[f"<td>{html.escape(cell)}</td>" for cell in row] for row in rows]
            body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
            parts.append(f"<div><table>\n{body}\n</table></div>")
        elif kind == "picture":
            data, caption = base64.b64encode(content[1]).decode(), html.escape(content[2])
            parts.append(f'<p><img alt="{caption}" src="data:image/png;base64,{data}"><br>{caption}</p>')
        elif kind == "folded":
            parts.append(f"<details><summary>{html.escape(content[0])}</summary>\n{webpage(content[1])}\n</details>")
        elif kind == "heading":
            parts.append(f'<h2 id="{anchor(content[0])}">{html.escape(content[0])}</h2>')
        else:
            parts.append(f"<p>{html.escape(content[0])}</p>")
    return "\n".join(parts)


def write_csv(path: Path, head: Iterable[str], rows: Iterable[Iterable]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def write(page: Page, folder: Path) -> None:
    """report.md and report.html, and a file for every table and picture of theirs. Raises OSError."""
    inside = [block for kind, *content in page if kind == "folded" for block in content[1]]
    for kind, *content in [*page, *inside]:
        if kind == "table":
            write_csv(folder / f"{content[0]}.csv", *content[1:])
        elif kind == "picture":
            (folder / f"{content[0]}.png").write_bytes(content[1])
    (folder / "report.md").write_text("# Report\n\n" + markdown(page), encoding="utf-8")
    (folder / "report.html").write_text(HEAD + webpage(page) + "\n</html>\n", encoding="utf-8")
