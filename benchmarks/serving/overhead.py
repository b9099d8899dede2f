"""What HTTP and the queue add to the time of an image.

The same image is asked for in turns over HTTP and from `Pipeline.generate` in this process. Their difference is the
whole price, but it is small beside the noise of the image itself. So the price is also measured without that noise:
what is left of a request's time without the seconds that the engines' thread spent on the image
(`infid_round_seconds` of the server's metrics), and without encoding it as PNG, which is not the server's price:
whoever calls `generate` and wants a file encodes it too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.provenance import measured_on
from benchmarks.serving.client import (
    PACKAGES,
    PROMPT,
    client,
    enroll,
    generate,
    metrics,
    photos,
    pixels_of,
    require,
    timed,
)
from benchmarks.serving.measures import median_ms
from benchmarks.serving.server_process import ServerProcess
from infid_export.cli.output import Output
from infid_export.runtime.pipeline import Pipeline

_ROUNDS = ("infid_round_seconds_sum",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="images of either kind (20)")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps of an image (30)")


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Measure, and return the document."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        ServerProcess(arguments.folder, Path(scratch)) as server,
        Pipeline.load(arguments.folder) as pipe,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # that the detector knows drawn people only
        series, equal = asyncio.run(_turns(server.url, pipe, arguments, output))
    request, direct, drawn, png = (np.asarray(series[name]) for name in ("request", "generate", "round", "png"))
    added = request - drawn - png
    share = float(np.median(added) / np.median(direct))
    return {
        "kind": "serving overhead", **measured_on(arguments.machine, PACKAGES), "rounds": arguments.rounds,
        "steps": arguments.steps, "same_image": equal, "request": median_ms(request), "generate": median_ms(direct),
        "round": median_ms(drawn), "png": median_ms(png), "added": median_ms(added), "added_share": round(share, 5),
        "request_minus_generate": median_ms(request - png - direct),
    }  # fmt: skip


async def _turns(
    url: str, pipe: Pipeline, arguments: argparse.Namespace, output: Output
) -> tuple[dict[str, list[float]], bool]:
    """Return seconds by name, and whether both ways gave the same image."""
    (content,) = photos(arguments.photo, 1)
    person = pipe.enroll(content)
    settings: dict[str, Any] = {"steps": arguments.steps, "seed": 1}
    series: dict[str, list[float]] = {name: [] for name in ("request", "generate", "round", "png")}
    equal = True
    async with client(url) as server:
        (id,) = await enroll(server, [content])
        for number in range(arguments.rounds + 1):
            before = await metrics(server)
            answer = require(await generate(server, {"prompt": PROMPT, "person": id, **settings}))
            after = await metrics(server)
            series["request"].append(answer.seconds)
            series["round"].append(after[_ROUNDS] - before[_ROUNDS])
            with timed(series["generate"]):
                (image,) = pipe.generate(PROMPT, person, **settings)
            with timed(series["png"]):
                _png(image)
            equal = equal and bool(np.array_equal(np.asarray(image), pixels_of(answer.response)))
            output.note(", ".join(f"{name} {each[-1] * 1e3:.1f} ms" for name, each in series.items()))
            if number == 0:  # the first image is slower
                for each in series.values():
                    each.clear()
    return series, equal


def _png(image: Image.Image) -> str:
    """Encode an image as the server does."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()
