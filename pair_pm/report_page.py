"""The report as one web page: no scripts, no other file, nothing from the network, in light, in dark and on paper."""

from collections.abc import Mapping
from html import escape

from pair_pm.report_document import Document, Figure, Section, Table, clean

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""
_STYLE = """
:root { --ink: #1a1c20; --soft: #555b66; --faint: #a3a8b0; --line: #d9dce1; --paper: #ffffff; --blue: #0067a3;
  --orange: #c04f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ec; --soft: #a8aeb8; --faint: #767c86; --line: #363a42;
  --paper: #16181c; --blue: #6cb8f0; --orange: #ff9d57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
nav { margin-top: 1rem; font-size: .9rem; }
nav a { display: inline-block; margin-right: 1rem; color: var(--blue); }
.table { overflow-x: auto; margin: 1rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; overflow-wrap: normal; }
tbody th { font-weight: 400; min-width: 9.5rem; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.interval { color: var(--soft); }
.note, figcaption p { color: var(--soft); font-size: .85rem; }
figure { margin: 1.25rem 0; break-inside: avoid; }
figcaption { font-weight: 600; }
figcaption p { font-weight: 400; margin: .1rem 0 .4rem; }
svg { max-width: 100%; height: auto; }
svg text { font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif !important; }
tr { break-inside: avoid; }
@media print { :root { --ink: #000; --soft: #333; --faint: #999; --line: #bbb; --paper: #fff; --blue: #0067a3;
  --orange: #c04f00; } nav { display: none; } body { padding: 0; font-size: 11pt; }
  .table { overflow: visible; } table { font-size: 7pt; } td, th { padding-right: .3rem; } tbody th { min-width: 0; } }
"""


def to_page(document: Document, plots: Mapping[str, str]) -> str:
    """Return the HTML of a document.

    Args:
        document: Its texts are escaped here.
        plots: SVG of each plot that there is, by name; a figure without one is left out.
    """
    names = [f"section-{number}" for number, _ in enumerate(document.sections, 1)]
    return _PAGE.format(
        title=_escape(document.title),
        style=_STYLE,
        lead="\n".join(f"<p>{_escape(text)}</p>" for text in document.lead),
        links="\n".join(
            f'<a href="#{name}">{_escape(section.title)}</a>'
            for name, section in zip(names, document.sections, strict=True)
        ),
        sections="\n".join(
            _draw_section(name, section, plots) for name, section in zip(names, document.sections, strict=True)
        ),
    )


def _draw_section(name: str, section: Section, plots: Mapping[str, str]) -> str:
    parts = [f'<section aria-labelledby="{name}">\n<h2 id="{name}">{_escape(section.title)}</h2>']
    for part in section.parts:
        if isinstance(part, Table):
            parts.append(_draw_table(part))
        elif isinstance(part, Figure):
            if part.name in plots:
                parts.append(_draw_figure(part, plots[part.name]))
        else:
            parts.append(f"<p>{_escape(part)}</p>")
    return "\n".join([*parts, "</section>"])


def _draw_figure(figure: Figure, svg: str) -> str:
    spoken = escape(f"{figure.title}. {figure.text}", quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{spoken}" ', 1)
    caption = f"<figcaption>{_escape(figure.title)}<p>{_escape(figure.text)}</p></figcaption>"
    return f'<figure id="figure-{figure.name}">\n{caption}\n{svg}\n</figure>'


def _draw_table(table: Table) -> str:
    numeric = [table.is_numeric(column) for column in range(len(table.header))]
    css = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{kind}>{_escape(cell)}</th>' for kind, cell in zip(css, table.header, strict=True))
    rows = []
    for row in table.rows:
        cells = [f'<th scope="row">{_escape(row[0])}</th>']
        cells += [f"<td{kind}>{_escape(cell)}</td>" for kind, cell in zip(css[1:], row[1:], strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="note">{_escape(note)}</p>\n' for note in table.notes)
    region = f'class="table" tabindex="0" role="region" aria-label="{_escape(table.caption)}"'
    return (
        f"<div {region}><table>\n"
        f"<caption>{_escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table></div>\n{notes}"
    )


def _escape(text: str) -> str:
    return escape(clean(text, 10_000), quote=True)
