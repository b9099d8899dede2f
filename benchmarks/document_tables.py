"""Draw the tables of README.md and docs/*.md from the measurements kept in benchmarks/results.

Usage::

    infid-export build --fp16 --json > build.json
    python benchmarks/document_tables.py keep demo-fp16 build.json "2 CPU cores"
    python benchmarks/quality/ablation_scores.py --identity-with-text benchmarks/quality/identity-with-text.safetensors
    python benchmarks/quality/backend_scores.py
    python benchmarks/quality/saver_scores.py
    python benchmarks/reliability.py
    python benchmarks/package_choices.py
    python benchmarks/cpp_library.py BUILD FOLDER --person FILE FILE
    python benchmarks/serving load | overhead | batching | soak | hostile
    python benchmarks/document_tables.py draw

`keep` stores what the tables need from a build; the other scripts write their results themselves. A table's place in a
document is `<!-- table: NAME -->` … `<!-- end -->`; each table has exactly one place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import cpp_library, package_choices, reliability, template_speed
from benchmarks.page_tables import with_tables
from benchmarks.provenance import RESULTS, ROOT, measured_on
from benchmarks.quality import ablation_scores, backend_scores, saver_scores
from benchmarks.serving import tables as serving

_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx-cu13")


def keep(name: str, document: Path, machine: str) -> None:
    """Store what the tables need from a build's document, with the machine and versions.

    Args:
        name: name of the result.
        document: JSON printed by `infid-export build --json`.
        machine: what it ran on, in words.
    """
    build = json.loads(document.read_text())
    result = {
        **measured_on(machine, _PACKAGES),
        "seconds": build["seconds"],
        "parity": build["parity"],
        "notes": build["notes"],
        "files": build["files"],
        "engines": [
            {key: engine[key] for key in ("graph", "backend", "target", "file")}
            for engine in build["engines"]
            if engine["backend"] != "onnxruntime"
        ],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def parity_table(results: dict[str, dict[str, Any]]) -> str:
    """Return one row per output, with a pair of columns for each result."""
    heads = [f"{name}, {size(result)}" for name, result in results.items()]
    lines = ["| graph | output | " + " | ".join(f"{head}: max | RMS" for head in heads) + " | verdict |"]
    lines.append("|---|---|" + "---|---|" * len(results) + "---|")
    first = next(iter(results.values()))["parity"]["rows"]
    for index, row in enumerate(first):
        rows = [result["parity"]["rows"][index] for result in results.values()]
        if any((other["graph"], other["output"]) != (row["graph"], row["output"]) for other in rows):
            raise ValueError("the results compare different outputs")
        cells = " | ".join(f"{other['max_error']:.1e} | {other['rms_error']:.1e}" for other in rows)
        verdict = "PASSED" if all(other["passed"] for other in rows) else "FAILED"
        lines.append(f"| `{row['graph']}` | {row['output']} | {cells} | {verdict} |")
    for name, result in results.items():
        image = result["parity"]["image"]
        if image is not None:
            verdict = "PASSED" if image["passed"] else "FAILED"
            lines += [
                "",
                f"{name}: {image['steps']}-step image, engines in fp16 against the fp32 reference: "
                f"PSNR {image['psnr_db']:.1f} dB, {verdict} (at least {image['threshold_db']:.0f}).",
            ]
    return "\n".join(lines)


def size(result: dict[str, Any]) -> str:
    """Return the size at which the images were compared."""
    height, width = result["parity"]["rows"][-1]["size"]
    return f"{width} × {height}"


def engine_table(result: dict[str, Any]) -> str:
    """Return one row per graph, with the cost of its ONNX file and its engine, and one row per weights file."""
    files = result["files"]

    def onnx(graph: str) -> str:
        return f"onnx/{graph}.onnx"

    def cost(name: str) -> str:
        return f"{files[name]['seconds']:.0f} s | {files[name]['peak_bytes'] / 1e9:.1f} GB"

    def gigabytes(name: str) -> str:
        return f"{files[name]['size'] / 1e9:.2f} GB"

    lines = [
        "| graph | ONNX export | peak memory | engine | size | build | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{engine['graph']}` | {cost(onnx(engine['graph']))} | {engine['backend']} {engine['target']} | "
        f"{gigabytes(engine['file'])} | {cost(engine['file'])} |"
        for engine in result["engines"]
    ]
    lines += [
        "",
        "| weights, written once and shared by the graphs | size | written in | peak memory |",
        "|---|---|---|---|",
    ]
    weights = [name for name in files if name.startswith("onnx/") and name.endswith(".safetensors")]
    lines += [f"| `{name}` | {gigabytes(name)} | {cost(name)} |" for name in weights]
    lines += ["", f"The whole build took {result['seconds'] / 60:.0f} minutes, parity included."]
    return "\n".join(lines)


def bench_table(document: dict[str, Any]) -> str:
    """Return the images of a document of `infid-export bench` and of other software, and its ratios."""
    folder, machine = document["folder"], document["machine"]
    names = {"joint": "ONNX Runtime, joint", "template": "ONNX Runtime, from a template"}
    times = {**document["images"], **document["others"]}
    lines = ["| image | seconds |", "|---|---|"]
    lines += [f"| {names.get(name, name)} | {each['median_ms'] / 1e3:.1f} |" for name, each in times.items()]
    ratios = document["ratios"]
    return "\n".join(
        [
            *lines,
            "",
            f"{folder['model']}, {folder['precision']}, {folder['height']} × {folder['width']}, {document['steps']} "
            f"steps with guidance, on {machine['cores']} cores of an {machine['processor']}. A joint step takes "
            f"{ratios['joint_over_plain']:.2f} times SDXL's own step of as many rows, a step from a template "
            f"{ratios['template_over_plain']:.2f} times; an image from a template is "
            f"{ratios['joint_image_over_template_image']:.2f} times as fast as the joint one. The host adds "
            f"{document['host_ms_per_step']:.2f} ms to a step.",
        ]
    )


def graph_table(document: dict[str, Any]) -> str:
    """Return the graphs of a document of `infid-export bench`, with what it ran on."""
    folder, machine = document["folder"], document["machine"]
    lines = ["| graph | milliseconds |", "|---|---|"]
    lines += [f"| `{name}` | {each['median_ms']:.1f} |" for name, each in document["graphs"].items()]
    samples = next(iter(document["graphs"].values()))["samples"]
    timed = "one call each, the fourth in a row" if samples == 1 else f"medians of {samples}"
    versions = ", ".join(f"{name} {document['versions'][name]}" for name in ("onnxruntime-gpu", "numpy"))
    return "\n".join(
        [
            *lines,
            "",
            f"{folder['model']}, {folder['precision']}, {folder['height']} × {folder['width']}, with guidance; "
            f"{timed}; {', '.join(machine['gpus'])}, driver {machine['driver']}, {versions}. The host adds "
            f"{document['host_ms_per_step']:.2f} ms to a step.",
        ]
    )


def documents() -> list[Path]:
    """Return the documents that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def tables() -> dict[str, str]:
    """Return every table in Markdown, by name."""
    demo, full, variants, engines, tried, templates, medium, speed, cuda, savers, choices, cpp = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in (
            "demo-fp16", "random-sdxl-fp16", "ablation", "backends", "reliability", "template-speed",
            "template-speed-medium", "bench-medium", "bench-sdxl-cuda", "savers", "package-choices", "cpp-library",
        )
    )  # fmt: skip
    return {
        "parity": parity_table({"demo": demo, "random-sdxl": full}),
        "engines": engine_table(full),
        "ablation": ablation_scores.markdown(variants),
        "backends": backend_scores.markdown(engines),
        "reliability": reliability.markdown(tried),
        "templates": template_speed.table([templates, medium]),
        "bench": bench_table(speed),
        "bench-cuda": graph_table(cuda),
        "savers": saver_scores.markdown(savers),
        "package-choices": package_choices.markdown(choices),
        "cpp-images": cpp_library.images_table(cpp),
        "cpp-speed": cpp_library.speed_table(cpp),
        **serving.drawn(RESULTS),
    }


def drawn() -> dict[Path, str]:
    """Return the text of every document with its tables drawn from the results."""
    return with_tables(documents(), tables())


def draw() -> None:
    """Write the documents whose tables have changed."""
    for path, text in drawn().items():
        if text != path.read_text():
            path.write_text(text)


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        draw()
