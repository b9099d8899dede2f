"""The tables of docs/serving.md, from the documents of the measurements."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.page_tables import markdown

_WAYS = {
    "plain": "different seeds",
    "template": "one template",
    "same prompt": "same prompt and seed, no template made",
}


def load_table(document: Mapping[str, Any]) -> str:
    """Return a row per number of requests at once."""
    rows = [
        [
            str(each["concurrency"]), *(f"{each[name] / 1e3:.2f} s" if name in each else "–" for name in _QUANTILES),
            f"{each['images_per_second']:.2f}", _statuses(each["statuses"]), str(each["rejected_with_429"]),
        ]
        for each in document["levels"]
    ]  # fmt: skip
    head = ["requests at once", "latency p50", "p95", "p99", "images per second", "answers", "429, tried again"]
    what = f"{document['images']} images of {document['steps']} steps each"
    return _with_machine(markdown(head, rows), document, what)


_QUANTILES = ("p50_ms", "p95_ms", "p99_ms")


def overhead_table(document: Mapping[str, Any]) -> str:
    """Return what a request's time consists of."""
    names = {
        "request": "request, as the client waits", "generate": "`Pipeline.generate` of the same image",
        "round": "of a request: on the engines' thread", "png": "of a request: PNG",
        "added": "of a request: HTTP and the queue",
    }  # fmt: skip
    rows = [[text, *(f"{document[name][each]:.2f} ms" for each in ("median_ms", "p20_ms", "p80_ms"))]
            for name, text in names.items()]  # fmt: skip
    same = "the same" if document["same_image"] else "NOT the same"
    what = (
        f"{document['rounds']} images of {document['steps']} steps, {same} over HTTP as from `Pipeline.generate`; "
        f"HTTP and the queue add {document['added_share']:.2%} of an image"
    )
    return _with_machine(markdown(["time", "median", "20 %", "80 %"], rows), document, what)


def batching_table(document: Mapping[str, Any]) -> str:
    """Return a row per folder and way to ask."""
    rows = []
    for folder in document["folders"]:
        for kind, text in _WAYS.items():
            ratio = folder["ratio"].get(kind)
            verdict = {True: "met", False: "missed"}[ratio >= folder["goal"]] if ratio is not None else "–"
            rows.append([str(folder["batch"]), text, f"{folder['images_per_second'][kind]:.2f}",
                         "1" if ratio is None else f"{ratio:.2f}", verdict])  # fmt: skip
    goal = document["folders"][0]["goal"]
    what = (
        f"{document['customers']} customers at once, {document['steps']} steps, medians of {document['rounds']} rounds"
    )
    head = ["batch", "customers ask for", "images per second", "ratio", f"at least {goal}"]
    return _with_machine(markdown(head, rows), document, what)


def soak_table(document: Mapping[str, Any]) -> str:
    """Return what was asked for, and what was found."""
    start, end = document["at_start"], document["at_end"]
    rows = [
        ["requests", f"{document['requests']:,}, of which {document['hung_up']:,} hung up"],
        ["images that arrived", f"{document['images']:,}"],
        ["answers by status", _statuses(document["statuses"])],
        ["accepted requests without an answer", str(len(document["lost"]))],
        ["server errors", str(document["server_errors"])],
        ["metrics that differ from the clients' counts", str(len(document["metrics_differ"]))],
        ["memory", f"{start['resident_mb']:.0f} MB at the start, {end['resident_mb']:.0f} MB at the end"],
        ["its slope in the last 75 % of the time", f"{document['resident_mb_per_hour']:+.1f} MB per hour"],
        ["seconds to stop, with nothing left to do", f"{document['stop_seconds']:.1f}"],
        ["open files", f"{start['descriptors']} at the start, {end['descriptors']} at the end"],
        ["threads", f"{start['threads']} at the start, {end['threads']} at the end"],
    ]
    what = f"{document['customers']} customers for {document['seconds'] / 60:.0f} minutes, {_verdict(document)}"
    return _with_machine(markdown(["of the mixed load", "found"], rows), document, what)


def hostile_table(document: Mapping[str, Any]) -> str:
    """Return a row per kind of request."""
    servers = list(document["servers"].values())
    rows = []
    for kind in servers[0]["requests"]:
        answers = Counter[str]()
        for each in servers:
            answers.update(each["statuses"][kind])
        number = sum(each["requests"][kind] for each in servers)
        rows.append([kind, f"{number:,}", _statuses(dict(sorted(answers.items())))])
    memory = [each["resident_mb"] for each in servers]
    grown = ", ".join(f"{each['start']:.0f} to {each['end']:.0f} MB" for each in memory if each)
    files = sum(each["files_compared"] for each in servers)
    what = (
        f"{document['requests']:,} requests to a server with tokens and one without, {_verdict(document)}; {files} "
        f"files and folders beside the people are untouched; memory went from {grown}"
    )
    return _with_machine(markdown(["hostile requests", "sent", "answers"], rows), document, what)


TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "serving-load": load_table,
    "serving-overhead": overhead_table,
    "serving-batching": batching_table,
    "serving-soak": soak_table,
    "serving-hostile": hostile_table,
}


def drawn(results: Path) -> dict[str, str]:
    """Return the tables of the documents that are in a folder, by name."""
    found = {name: results / f"{name}.json" for name in TABLES}
    return {name: TABLES[name](json.loads(path.read_text())) for name, path in found.items() if path.exists()}


def _statuses(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} × {status}" for status, number in statuses.items())


def _verdict(document: Mapping[str, Any]) -> str:
    return "PASSED" if not document["faults"] else f"FAILED ({document['faults']} faults)"


def _with_machine(table: str, document: Mapping[str, Any], what: str) -> str:
    measured = f"Measured on {document['machine']}, at commit {document['commit'][:7]}."
    return f"{table}\n\n{what[0].upper()}{what[1:]}. {measured}"
