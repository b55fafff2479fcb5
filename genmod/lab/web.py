"""A document as one page of HTML that stands alone: figures, style and script are inside, and nothing is asked of any server.

A click on the head of a column, or a key, sorts the rows by it and a second one reverses them; what has no value stays last. A
wide table scrolls within its own box, under its head and beside its first column. The page follows the reader's choice of light
or dark, and prints.
"""

import base64
import html
import re
from pathlib import Path

from genmod.lab.document import Cell, Document, Figure, Heading, Part, Reason, Table, Text, cell, one_line

# What the browser may load: the images inside the page, its own style and script, nothing from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1d21; --soft: #5d636e; --line: #e3e5e9; --rule: #8b919b; --tint: #f3f5f8; --link: #1d56b0;
}
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --ink: #e4e6ea; --soft: #9ba2ad; --line: #2b2f37; --rule: #69707c; --tint: #1e2127; --link: #8db7f7; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; overflow-wrap: break-word; }
main { max-width: 100rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 3rem) 5rem; }
h1, h2, h3, h4, h5, h6 { line-height: 1.25; font-weight: 650; text-wrap: balance; margin: 2.5rem 0 .75rem; max-width: 46rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 1.6vw, 2.1rem); letter-spacing: -.015em; margin: 0 0 1.25rem; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin-top: 3.25rem; }
h3 { font-size: 1.1rem; }
h4, h5, h6 { font-size: 1rem; }
p { margin: 0 0 1rem; max-width: 46rem; text-wrap: pretty; }
a { color: var(--link); text-underline-offset: .18em; text-decoration-thickness: 1px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 2px; }
nav { margin: 2rem 0 0; padding: .9rem 0; border: solid var(--line); border-width: 1px 0; font-size: .9375rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav ul:has(li:nth-child(9)) { columns: 16rem; column-gap: 2rem; }
nav li { break-inside: avoid; padding: .15rem 0 .15rem calc(var(--depth) * 1.1rem); }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
figure { margin: 1.5rem 0 2rem; }
figcaption { color: var(--soft); font-size: .9375rem; line-height: 1.5; max-width: 46rem; text-wrap: pretty; }
table + figcaption, img + figcaption { margin-top: .6rem; }
.table figcaption { margin-bottom: .6rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.box { overflow: auto; width: fit-content; max-width: 100%; max-height: 88vh; max-height: 88svh;
  overscroll-behavior-x: contain; border: solid var(--rule); border-width: 1.5px 0; }
@media screen {
  .box[data-right] { mask-image: linear-gradient(to left, rgb(0 0 0 / .2), #000 2.5rem); }
  .box[data-left] tr > :first-child { box-shadow: 1px 0 var(--rule); }
}
table { border-collapse: separate; border-spacing: 0; font-size: .9375rem; line-height: 1.35; min-width: min(100%, 30rem);
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .45rem .8rem; text-align: left; white-space: nowrap; vertical-align: baseline; background: var(--paper);
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: var(--tint); }
th { font-weight: 500; }
thead th { position: sticky; top: 0; z-index: 2; padding: 0; vertical-align: bottom; border-bottom-color: var(--rule); }
tr > :first-child { position: sticky; left: 0; z-index: 1; padding-left: .2rem; }
thead tr > :first-child { z-index: 3; padding-left: 0; }
thead tr > :first-child button { padding-left: .2rem; }
.num { text-align: right; }
.num:not([data-value]) { color: var(--soft); }
.num span { color: var(--soft); font-size: .875em; white-space: nowrap; }
.best { font-weight: 700; }
.reason { color: var(--soft); white-space: normal; font-style: italic; }
.reason span { display: block; width: fit-content; position: sticky; left: calc(var(--first, 9rem) + .8rem);
  max-width: min(46rem, 100vw - var(--first, 9rem) - 4rem); }
button { display: block; width: 100%; min-width: max-content; margin: 0; padding: .5rem .8rem; border: 0; background: none;
  color: var(--soft); font: 600 .875rem/1.25 system-ui, sans-serif; text-align: inherit; cursor: pointer; }
button:hover, [aria-sort] button { color: var(--ink); }
button:focus-visible { outline-offset: -2px; }
button::after { content: "\\2193"; display: inline-block; width: 1em; margin-right: -1em; text-align: right; opacity: 0; }
button:hover::after { opacity: .4; }
@media (hover: none) { button::after { opacity: .3; } }
[aria-sort] button::after { opacity: 1; }
[aria-sort="ascending"] button::after { content: "\\2191"; }
@media screen and (min-width: 40.01rem) { wbr { display: none; } }
@media (max-width: 40rem) {
  tbody th { max-width: 34vw; white-space: normal; }
  th, td, button { padding-left: .6rem; padding-right: .6rem; }
}
@media print {
  :root { color-scheme: light; font-size: 10pt; }
  @page { margin: 1.5cm; }
  main { max-width: none; padding: 0; }
  .box { overflow: visible; max-height: none; }
  table { font-size: 7.5pt; }
  th, td { white-space: normal; padding: 2pt 4pt; }
  thead th { padding: 2pt 4pt; font-weight: 600; }
  button { display: contents; font-size: inherit; }
  button::after { content: none !important; }
  thead th, tr > :first-child, .reason span { position: static; }
  tr, img { break-inside: avoid; }
  h2, h3, h4, h5, h6, figcaption { break-after: avoid; }
}
"""

_SCRIPT = """
const words = new Intl.Collator("en", {numeric: true});
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("num");
    const key = row => {
      const cell = row.cells[column];
      if (!cell || cell.classList.contains("reason")) return null;
      if (numeric) return "value" in cell.dataset ? Number(cell.dataset.value) : null;
      return cell.textContent || null;
    };
    head.firstElementChild.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const keyed = rows.map(row => [key(row), row]);
      keyed.sort(([a], [b]) => a === null || b === null
        ? (a === null) - (b === null)
        : sign * (numeric ? a - b : words.compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
  const box = table.parentElement;
  const measure = () => {
    table.style.setProperty("--first", heads[0].offsetWidth + "px");
    box.toggleAttribute("data-left", box.scrollLeft > 1);
    box.toggleAttribute("data-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  new ResizeObserver(measure).observe(box);
  box.addEventListener("scroll", measure, {passive: true});
}
"""


def page(document: Document) -> str:
    """A document as one HTML page, complete and without a request to any other place.

    Figures are inside as data URIs. Two headings or more make a table of contents.
    """
    headings = [part for part in document.parts if isinstance(part, Heading)]
    anchors = _anchors([heading.text for heading in headings])
    left = iter(anchors)
    parts = [_heading(part, next(left)) if isinstance(part, Heading) else _part(part) for part in document.parts]
    first = next((i for i, part in enumerate(document.parts) if isinstance(part, Heading)), 0)
    parts[first:first] = _contents(headings, anchors)
    title = _escaped(document.title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{title}</h1>",
            *filter(None, parts),
            "</main>",
            f"<script>{_SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _anchors(texts: list[str]) -> list[str]:
    """A name for each heading, made of its words; a number tells equal ones apart."""
    found: list[str] = []
    for text in texts:
        base = "-".join(re.findall(r"\w+", text.lower())) or "section"
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.append(name)
    return found


def _contents(headings: list[Heading], anchors: list[str]) -> list[str]:
    if len(headings) < 2:
        return []
    top = min(heading.level for heading in headings)
    lines = [
        f'<li style="--depth: {heading.level - top}"><a href="#{anchor}">{_escaped(heading.text)}</a></li>'
        for heading, anchor in zip(headings, anchors, strict=True)
    ]
    return ['<nav aria-label="Contents">', "<ul>", *lines, "</ul>", "</nav>"]


def _heading(heading: Heading, anchor: str) -> str:
    return f'<h{heading.level} id="{anchor}">{_escaped(heading.text)}</h{heading.level}>'


def _part(part: Part) -> str:
    match part:
        case Text():
            return "\n".join(f"<p>{_escaped(paragraph)}</p>" for paragraph in part.paragraphs)
        case Table():
            return _table(part)
        case Figure():
            return _figure(part)
        case Heading():
            raise AssertionError("a heading is written with its anchor")


def _figure(figure: Figure) -> str:
    data = Path(figure.path).read_bytes()
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{_escaped(figure.alt)}" width="{width}" height="{height}">'
    return "\n".join(["<figure>", image, *_caption(figure.caption), "</figure>"])


def _caption(text: str) -> list[str]:
    return [f"<figcaption>{_escaped(text)}</figcaption>"] if text.strip() else []


def _table(table: Table) -> str:
    heads = [
        f'<th scope="col"{_kind(numeric)}><button type="button">{_escaped(name)}</button></th>'
        for name, numeric in zip(table.columns, table.numeric, strict=True)
    ]
    rows = [f"<tr>{''.join(_entry(table, j, entry) for j, entry in enumerate(row))}</tr>" for row in table.rows]
    label = _escaped(table.caption) or "Table"
    return "\n".join(
        [
            '<figure class="table">',
            *_caption(table.caption),
            f'<div class="box" role="region" aria-label="{label}" tabindex="0">',
            "<table>",
            f"<thead><tr>{''.join(heads)}</tr></thead>",
            *["<tbody>", *rows, "</tbody>"],
            "</table>",
            "</div>",
            "</figure>",
        ]
    )


def _entry(table: Table, column: int, entry: str | Cell | Reason) -> str:
    if isinstance(entry, Reason):
        return f'<td class="reason" colspan="{len(table.columns) - column}"><span>{_escaped(entry.text)}</span></td>'
    entry = cell(entry)
    tag, scope = ("td", "") if column else ("th", ' scope="row"')
    kind = _kind(table.numeric[column], entry.best)
    if entry.value is None:
        # The name of a row may break after an underscore.
        text = _escaped(entry.text) if column else _escaped(entry.text).replace("_", "_<wbr>")
        return f"<{tag}{scope}{kind}>{text}</{tag}>"
    number, sign, error = _escaped(entry.text).partition(" +- ")
    shown = f"{number} <span>\N{PLUS-MINUS SIGN} {error}</span>" if sign else number
    return f'<{tag}{scope}{kind} data-value="{float(entry.value)!r}">{shown}</{tag}>'


def _kind(numeric: bool, best: bool = False) -> str:
    names = " ".join(name for name, holds in (("num", numeric), ("best", best)) if holds)
    return f' class="{names}"' if names else ""


def _escaped(text: str) -> str:
    return html.escape(one_line(text))
