"""Fuzzed documents that users pass to commands: tuning files, scores, evaluation sets, kernel bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from bundle_parts import compiled
from evaluation_parts import evaluation
from fuzz_harness import AcceptedDamageError, Attempt
from mutations import damaged, damaged_json, json_text
from PIL import Image

from infid_engines.documents import sealed
from infid_engines.errors import InputError
from infid_engines.kernel_bundle import INDEX, KernelBundle, write_bundle
from infid_export.evaluation.evaluation import Evaluation
from infid_export.evaluation.gate import compare
from infid_export.evaluation.set_sources import json_set
from infid_kernels import tuning


def users_documents(folder: Path) -> Attempt:
    """Read odd tuning files, scores and sets; whatever is accepted is then used."""
    Image.new("RGB", (8, 8)).save(folder / "ann.png")
    scores = evaluation({("ann", "a"): 0.5, ("bob", "a"): 0.25})
    documents: dict[str, Any] = {
        "tuning.json": json.loads(tuning.TABLE.read_text()),
        "scores.json": json.loads(json.dumps(scores.to_json())),
        "set.json": {
            "people": [{"name": "ann", "photo": "ann.png"}], "seeds": [0, 1],
            "prompts": ["a knight", {"text": "a knight as a woodcut", "stylized": True}],
        },
    }  # fmt: skip
    documents["tuning.json"]["entries"] = documents["tuning.json"]["entries"][:4]

    def attempt(random: Random) -> None:
        name = random.choice(list(documents))
        content = json.dumps(documents[name]).encode()
        whole = damaged_json(random, documents[name])
        (folder / name).write_bytes(damaged(random, content) if random.random() < 0.3 else json_text(random, whole))
        if name == "tuning.json":
            _use_tuning(folder / name)
        elif name == "scores.json":
            compare(scores, Evaluation.load(folder / name))
        else:
            list(json_set(folder / name).requests(json_set(folder / name).people[0]))

    return attempt


def _use_tuning(path: Path) -> None:
    try:
        with tuning.loaded(path):
            for op in tuning.OPS:
                tuning.entry(op, "sm_90", 64, 4096, True)
    except ValueError as error:  # its callers turn it into an InputError
        raise InputError(str(error), fix="Write it with `infid-export tune`.") from error


def bundles(folder: Path) -> Attempt:
    """Load kernel bundles with one damaged file: only a file with unchanged content may be accepted."""
    path = folder / "bundle"
    write_bundle(path, [compiled(), compiled("mean_shift", even_n=None)])
    whole = KernelBundle.load(path)
    contents = {each: each.read_bytes() for each in sorted(path.iterdir())}
    index = json.loads((path / INDEX).read_text())

    def attempt(random: Random) -> None:
        chosen = random.choice(list(contents))
        forged = random.random() < 0.3
        try:
            if forged:
                odd = damaged_json(random, index)
                (path / INDEX).write_bytes(json_text(random, sealed(odd) if isinstance(odd, dict) else odd))
            else:
                chosen.write_bytes(damaged(random, contents[chosen]))
            found = KernelBundle.load(path)
            if not forged and (found.index, found.launches) != (whole.index, whole.launches):
                raise AcceptedDamageError(chosen.name)
            if not forged and chosen.suffix in (".cubin", ".ptx"):
                raise AcceptedDamageError(chosen.name)
        finally:
            shutil.rmtree(path)
            path.mkdir()
            for each, content in contents.items():
                each.write_bytes(content)

    return attempt
