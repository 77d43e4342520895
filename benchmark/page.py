"""A page as a list of blocks, and what it is written as: Markdown, one self-contained HTML page, CSV, PNG.

    page = [heading("Scores"), text("Mean over seeds."), table("table1", ["task", "score"], [["hopper", "31.1"]])]
    write(page, Path("report"))
"""

import base64
import csv
import html
import io
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

Page = list[tuple]


def heading(words: str) -> tuple:
    return "heading", words


def text(words: str) -> tuple:
    return "text", words


def table(name: str, head: list[str], rows: list[list[str]]) -> tuple:
    """`name` becomes that of the CSV file."""
    return "table", name, head, rows


def number(value: float, form: str = ".1f") -> str:
    """As it stands in a table; – for NaN."""
    return "–" if math.isnan(value) else format(value, form)


def figure(rows: int, columns: int, width: float, height: float, **options):
    """A matplotlib figure and its axes, (rows, columns); width and height of one panel in inches."""
    from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no state between pictures

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure, title: str = "") -> None:
    """One legend below all panels: of lines with the same label the first."""
    lines = {line.get_label(): line for axis in reversed(figure.axes) for line in axis.get_lines()}
    characters = 16 * figure.get_figwidth()  # that fit side by side
    columns = max(1, int(characters / (max(map(len, lines)) + 6)))
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=7,
        title=textwrap.fill(title, int(characters)) or None, title_fontsize=7,
    )


def picture(name: str, figure, caption: str) -> tuple:
    """The figure, drawn; `name` becomes that of the PNG file."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=100, metadata={"Software": None})  # else it holds matplotlib's version
    return "picture", name, memory.getvalue(), caption


def markdown(page: Page) -> str:
    parts = []
    for kind, *content in page:
        if kind == "table":
            _, head, rows = content
            lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        elif kind == "picture":
            name, _, caption = content
            parts.append(f"![{caption}]({name}.png)\n\n{caption}")
        else:
            parts.append("## " * (kind == "heading") + content[0])
    return "# Report\n\n" + "\n\n".join(parts) + "\n"


HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Report</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
div { overflow-x: auto; }
img { max-width: 100%; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: 2px 10px; text-align: left; white-space: nowrap; }
</style>
<h1>Report</h1>
"""


def webpage(page: Page) -> str:
    parts = []
    for kind, *content in page:
        if kind == "table":
            _, head, rows = content
            lines = [[f"<th>{html.escape(cell)}</th>" for cell in head]]
            lines += [[f"<td>{html.escape(cell)}</td>" for cell in row] for row in rows]
            body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
            parts.append(f"<div><table>\n{body}\n</table></div>")
        elif kind == "picture":
            data, caption = base64.b64encode(content[1]).decode(), html.escape(content[2])
            parts.append(f'<p><img alt="{caption}" src="data:image/png;base64,{data}"><br>{caption}</p>')
        else:
            tag = "h2" if kind == "heading" else "p"
            parts.append(f"<{tag}>{html.escape(content[0])}</{tag}>")
    return HEAD + "\n".join(parts) + "\n</html>\n"


def write_csv(path: Path, head: Iterable[str], rows: Iterable[Iterable]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def write(page: Page, folder: Path) -> None:
    """report.md and report.html, and a file for every table and picture of theirs. Raises OSError."""
    for kind, name, *content in page:
        if kind == "table":
            write_csv(folder / f"{name}.csv", *content)
        elif kind == "picture":
            (folder / f"{name}.png").write_bytes(content[0])
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")
    (folder / "report.html").write_text(webpage(page), encoding="utf-8")
