"""The report of a measurement: one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from infid_export.bench.machine import where

_WIDTH, _LABELS, _BAR, _GAP = 860, 210, 18, 10  # of charts, in pixels
_PARTS = {"text encoders": "--four", "steps": "--one", "decoder": "--two", "the rest": "--faint"}  # with their colors
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #66707a; --line: #d9dee3; --paper: #fff; --one: #2f6f9f;
  --two: #c0702c; --three: #4f8a4b; --four: #8a5a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --faint: #98a2ab; --line: #3a4249; --paper: #171b1f;
  --one: #6aaedd; --two: #e0955a; --three: #83bd7d; --four: #b98fcc; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 880px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p, td, th { color: var(--ink); } .faint { color: var(--faint); }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--line); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } text { fill: var(--ink); font: 12px system-ui, sans-serif; }
text.faint { fill: var(--faint); } input { font: inherit; width: 6rem; }
"""
_COST = """
const price = document.getElementById("price");
function cost() {
  for (const cell of document.querySelectorAll("[data-ms]"))
    cell.textContent = (price.value * cell.dataset.ms / 3600).toFixed(2);
}
price.addEventListener("input", cost);
cost();
"""


def html(document: Mapping[str, Any]) -> str:
    """Return the page of a document from `bench`."""
    machine, folder, batch = document["machine"], document["folder"], document["folder"]["batch"]
    graphs, images, others = document["graphs"], document["images"], document["others"]
    title = f"{folder['model']}, {folder['precision']}, {folder['height']} × {folder['width']}"
    versions = ", ".join(f"{name} {each}" for name, each in document["versions"].items())
    every = {**images, **others}
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(document["backend"])} on {escape(where(document))}, {machine["cores"]} cores; '
        f"{document['steps']} steps, batch {batch}, {'with' if folder['guidance'] else 'without'} guidance.<br>"
        f"Python {machine['python']}, {escape(versions)}</p>",
        "<h2>An image</h2>",
        "<p>Medians; the thin line spans the middle three fifths of the timings. Everything took turns in one run.</p>",
        _bars(every, {name: "var(--one)" if name in images else "var(--two)" for name in every}),
        "<h2>Where the time goes</h2>",
        _stages(document),
        "<h2>Each graph</h2>",
        _bars(graphs, dict.fromkeys(graphs, "var(--three)")),
        *_floor(graphs),
        "<h2>Scaling</h2>",
        "<p>Milliseconds an image.</p>",
        *(_lines(name, kinds) for name, kinds in document["scaling"].items()),
        *_ratios(document["ratios"]),
        f"<p>The host adds {document['host_ms_per_step']:.2f} ms to a step ({document['host_share']:.1%}). Peak memory "
        f"of the process: {document['peak_bytes'] / 1e9:.2f} GB. A new process has its first image after "
        f"{document['first_image_seconds']:.1f} s.{_on_device(document['device_bytes'])}</p>",
        "<h2>The price of 1,000 images</h2>",
        '<p>At <input id="price" type="number" min="0" step="0.1" value="1.0"> per hour of this machine:</p>',
        _table(
            ("image", "cost"),
            [(name, f'<span data-ms="{each["median_ms"] / batch}"></span>') for name, each in every.items()],
            raw=True,
        ),
        *_energy(every, batch),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + f"\n<script>{_COST}</script></body></html>\n"
    )


def _ratios(ratios: Mapping[str, float | None]) -> list[str]:
    """Return a heading and a table of the known ratios; nothing if none is known."""
    rows = [(name.replace("_", " "), f"{value:.2f}") for name, value in ratios.items() if value is not None]
    return ["<h2>The price of an identity</h2>", _table(("ratio of medians", "value"), rows)] if rows else []


def _floor(graphs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence and a table on the floor of each graph; nothing if none is known."""
    shares = {
        name: each["floor_ms"] / each["median_ms"] for name, each in graphs.items() if each["floor_ms"] is not None
    }
    if not shares:
        return []
    return [
        "<p>The mark is the floor: the graph's matrix products and convolutions at the speed of a large matrix product "
        "on this device.</p>",
        _table(("graph", "share of the floor"), [(name, f"{share:.0%}") for name, share in shares.items()]),
    ]


def _lines(name: str, kinds: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Return a chart of milliseconds against a property, with a line for each kind of image."""
    points = [pair for pairs in kinds.values() for pair in pairs]
    right, top, height = max(x for x, _ in points), max(y for _, y in points), 180
    parts = [
        f'<path d="M{_LABELS} 10V{height}H{_WIDTH - 90}" stroke="var(--line)" fill="none"/>',
        f'<text class="faint" x="{_LABELS - 8}" y="20" text-anchor="end">{_milliseconds(top)}</text>',
        f'<text class="faint" x="{_LABELS - 8}" y="{height}" text-anchor="end">0</text>',
        f'<text x="8" y="{height / 2}">{escape(name)}</text>',
    ]
    for (kind, pairs), color in zip(kinds.items(), ("--one", "--two"), strict=False):
        places = [(_LABELS + x / right * (_WIDTH - _LABELS - 110), height - y / top * (height - 20)) for x, y in pairs]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="var({color})" stroke-width="2"/>')
        for (x, y), (value, each) in zip(places, pairs, strict=True):
            told = f"<title>{escape(kind)}, {value:g}: {_milliseconds(each)}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var({color})">{told}</circle>')
        parts.append(f'<text x="{places[-1][0] + 10:.1f}" y="{places[-1][1] + 4:.1f}">{escape(kind)}</text>')
    parts += [
        f'<text class="faint" x="{_LABELS + x / right * (_WIDTH - _LABELS - 110):.1f}" y="{height + 16}" '
        f'text-anchor="middle">{x:g}</text>'
        for x in sorted({x for x, _ in points})
    ]
    return _svg(height + 30, parts)


def _on_device(memory: int | None) -> str:
    return "" if memory is None else f" {memory / 1e9:.2f} GB of GPU memory were in use after the images."


def _energy(times: Mapping[str, Mapping[str, Any]], batch: int) -> list[str]:
    """Return a table of the energy of 1,000 images; nothing if it was not metered."""
    watt_hours = {name: each["joules"] / batch / 3.6 for name, each in times.items() if each["joules"] is not None}
    if not watt_hours:
        return []
    rows = [(name, f"{each:.1f} Wh") for name, each in watt_hours.items()]
    return ["<p>The device's own energy for them:</p>", _table(("image", "energy"), rows)]


def _bars(times: Mapping[str, Mapping[str, float]], colors: Mapping[str, str]) -> str:
    """Return a chart with one bar per name, and a line from the 20th to the 80th percentile."""
    longest = max(each["p80_ms"] for each in times.values()) or 1.0
    scale = (_WIDTH - _LABELS - 90) / longest
    parts = []
    for row, (name, each) in enumerate(times.items()):
        y, end = row * (_BAR + _GAP), _LABELS + each["median_ms"] * scale
        low, high = (_LABELS + each[key] * scale for key in ("p20_ms", "p80_ms"))
        middle, floor = y + _BAR / 2, each.get("floor_ms")
        parts += [
            f'<text x="{_LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABELS}" y="{y}" width="{end - _LABELS:.1f}" height="{_BAR}" fill="{colors[name]}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="var(--ink)" stroke-width="1.5"/>',
            f'<text x="{max(end, high) + 6:.1f}" y="{middle + 4}">{_milliseconds(each["median_ms"])}</text>',
        ]
        if floor is not None:
            place = _LABELS + min(floor, longest) * scale
            parts.append(f'<path d="M{place:.1f} {y - 2}v{_BAR + 4}" stroke="var(--two)" stroke-width="2"/>')
    return _svg(len(times) * (_BAR + _GAP), parts)


def _stages(document: Mapping[str, Any]) -> str:
    """Return a chart of the parts of each of our images: text encoders, steps, decoder, and the rest."""
    graphs, steps = document["graphs"], document["steps"]
    encoders = sum(graphs[name]["median_ms"] for name in ("text_encoder", "text_encoder_2"))
    decoder = graphs["vae_decoder"]["median_ms"]
    kinds = {
        "joint": ("denoise_step", encoders),
        "single": ("single_step", encoders),
        "template": ("identity_step", 0.0),
    }
    longest = max(each["median_ms"] for each in document["images"].values())
    scale, parts = (_WIDTH - _LABELS - 90) / longest, []
    for row, (name, each) in enumerate(document["images"].items()):
        graph, text = kinds[name]
        known = {"text encoders": text, "steps": steps * graphs[graph]["median_ms"], "decoder": decoder}
        known["the rest"] = max(0.0, each["median_ms"] - sum(known.values()))
        x, y = float(_LABELS), row * (_BAR + _GAP)
        parts.append(f'<text x="{_LABELS - 8}" y="{y + _BAR / 2 + 4}" text-anchor="end">{escape(name)}</text>')
        for what, value in known.items():
            width, told = value * scale, f"<title>{what}: {_milliseconds(value)}</title>"
            place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"'
            parts.append(f'<rect {place} fill="var({_PARTS[what]})">{told}</rect>')
            x += width
    legend = len(document["images"]) * (_BAR + _GAP)
    x = float(_LABELS)
    for what, color in _PARTS.items():
        parts.append(f'<rect x="{x}" y="{legend + 2}" width="10" height="10" fill="var({color})"/>')
        parts.append(f'<text class="faint" x="{x + 15}" y="{legend + 11}">{what}</text>')
        x += 115
    return _svg(legend + 20, parts)


def _svg(height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    """Return a table whose last column holds numbers; with `raw`, that one is HTML already."""
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    lines = [
        "<tr>"
        + "".join(f"<td>{escape(each)}</td>" for each in row[:-1])
        + f'<td class="number">{row[-1] if raw else escape(row[-1])}</td></tr>'
        for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _milliseconds(value: float) -> str:
    return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.1f} ms"
