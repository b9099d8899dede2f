"""Fuzzed engine folders: manifests, files, and tokenizers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_harness import AcceptedDamageError, Attempt
from mutations import damaged, damaged_json, json_text
from tiny_engines import DEPTH_K, DEPTH_T, MODEL, TOKENS, write_folder

from infid_engines.device import CPU
from infid_engines.documents import sealed
from infid_engines.manifest import MANIFEST, Manifest, sha256_file
from infid_engines.progress import SilentReporter
from infid_export.export.parity import stored_parity
from infid_export.model.tokenizers import folder_tokenizer_json
from infid_export.runtime.engine_set import EngineSet
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.tokenizer import FILES, PromptTokenizer

_WORDS = ("a", "photo", "of", "person", "blue")
_GRAPHS = ("text_encoder", "text_encoder_2", "identity_encoder", "denoise_step", "vae_decoder")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the current directory within the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def small_folder(folder: Path) -> Path:
    """Write a tiny engine folder whose tokenizers know few words, so that it loads within milliseconds."""
    engines = write_folder(folder / "engines")
    for name, pad in zip(FILES, ("<|endoftext|>", "!"), strict=True):
        checkpoint = checkpoint_tokenizer(folder / "words", pad)
        (engines / name).write_text(folder_tokenizer_json(checkpoint), encoding="utf-8")
    document = json.loads((engines / MANIFEST).read_text())
    for name in FILES:
        path = engines / name
        document["files"][name] |= {"sha256": sha256_file(path), "size": path.stat().st_size}
    (engines / MANIFEST).write_text(json.dumps(sealed(document)))
    return engines


def person() -> Person:
    random = np.random.default_rng(7)
    tokens, keys, values = (
        random.standard_normal((2, TOKENS, depth)).astype(np.float32) for depth in (DEPTH_T, DEPTH_K, DEPTH_K)
    )
    return Person(tokens, keys, values, MODEL)


def manifests(folder: Path) -> Attempt:
    """Load folders with a damaged manifest: only a manifest with unchanged content may be accepted."""
    engines = small_folder(folder)
    path = engines / MANIFEST
    content, whole = path.read_bytes(), Manifest.load(engines)
    document = json.loads(content)

    def attempt(random: Random) -> None:
        if random.random() < 0.5:
            path.write_bytes(damaged(random, content))
        else:
            path.write_bytes(json_text(random, damaged_json(random, document)))
        if Manifest.load(engines) != whole:
            raise AcceptedDamageError("another manifest")

    return attempt


def forged_manifests(folder: Path) -> Attempt:
    """Use folders whose manifest has odd values under a fresh seal: each must run or be rejected."""
    engines = small_folder(folder)
    document = {name: value for name, value in json.loads((engines / MANIFEST).read_text()).items() if name != "seal"}
    whom = person()

    def attempt(random: Random) -> None:
        odd = damaged_json(random, document)
        if isinstance(odd, dict):
            odd = sealed({**odd, "schema_version": document["schema_version"]})
        (engines / MANIFEST).write_bytes(json.dumps(odd).encode())
        with Pipeline.load(engines, backend="onnxruntime") as pipe:
            pipe.generate("a photo of a person", whom, seed=0, output_type="latents", reporter=SilentReporter())

    return attempt


def engine_files(folder: Path) -> Attempt:
    """Use folders with one damaged file: it must never be accepted."""
    engines = small_folder(folder)
    manifest = Manifest.load(engines)
    contents = {name: (engines / name).read_bytes() for name in manifest.files}

    def attempt(random: Random) -> None:
        name = random.choice(list(contents))
        path = engines / name
        try:
            if random.random() < 0.05:
                path.unlink()
            else:
                path.write_bytes(damaged(random, contents[name]))
            EngineSet(engines, manifest, "onnxruntime", None, CPU).verify(name)
        finally:
            path.write_bytes(contents[name])
        raise AcceptedDamageError(name)

    return attempt


def parity_documents(folder: Path) -> Attempt:
    """Read damaged comparisons: only those with unchanged content may be accepted."""
    row = {
        "graph": "vae_decoder", "output": "image", "dtype": "float32", "max_error": None, "rms_error": 1e-4,
        "cosine": 1e-7, "max_tolerance": 1e-1, "rms_tolerance": 1e-2, "passed": False, "key": "k",
        "size": [64, 64], "precision": "fp32",
    }  # fmt: skip
    image = {"psnr_db": 68.7, "threshold_db": 40.0, "steps": 30, "passed": True, "key": "", "precision": "fp32"}
    document = sealed({"rows": [row, {**row, "max_error": 1e-3}], "image": image, "version": 1, "passed": False})
    path = folder / "parity.json"
    path.write_text(json.dumps(document))
    content, whole = path.read_bytes(), stored_parity(folder)

    def attempt(random: Random) -> None:
        what = random.random()
        if what < 0.4:
            path.write_bytes(damaged(random, content))
        else:
            odd = damaged_json(random, document)
            forged = what > 0.7 and isinstance(odd, dict)
            path.write_bytes(json_text(random, sealed(odd) if forged else odd))
            if forged:
                stored_parity(folder)
                return
        if stored_parity(folder) != whole:
            raise AcceptedDamageError("another comparison")

    return attempt


def tokenizers(folder: Path) -> Attempt:
    """Use damaged tokenizer files from engine folders (without checking hashes here) and from checkpoints."""
    engines = folder / "plain"
    texts = []
    for name, pad in zip(FILES, ("<|endoftext|>", "!"), strict=True):
        (engines / name).parent.mkdir(parents=True)
        texts.append(folder_tokenizer_json(checkpoint_tokenizer(folder / "words", pad)))
        (engines / name).write_text(texts[-1], encoding="utf-8")
    document = json.loads(texts[0])
    checkpoints = [checkpoint_tokenizer(folder / "old", "!"), _new_checkpoint_tokenizer(folder / "new", document)]
    contents = {path: path.read_bytes() for each in checkpoints for path in sorted(each.iterdir())}

    def attempt(random: Random) -> None:
        if random.random() < 0.4:
            odd = json_text(random, damaged_json(random, document))
            (engines / FILES[0]).write_bytes(odd if random.random() < 0.7 else damaged(random, texts[0].encode()))
            tokenizer = PromptTokenizer(engines)
            first, second = tokenizer.encode(["a photo of a blue person", "", "é🙂" * 100])
            tokenizer.dropped("blue " * 100)
            if first.shape != (3, 77) or second.shape != (3, 77):
                raise AcceptedDamageError(f"{first.shape} {second.shape}")
            return
        path = random.choice(list(contents))
        try:
            path.write_bytes(_damaged_text(random, contents[path], path.suffix == ".json"))
            folder_tokenizer_json(path.parent)
        finally:
            path.write_bytes(contents[path])

    return attempt


def _damaged_text(random: Random, content: bytes, is_json: bool) -> bytes:
    if is_json and random.random() < 0.6:
        return json_text(random, damaged_json(random, json.loads(content)))
    return damaged(random, content)


def checkpoint_tokenizer(folder: Path, pad: str) -> Path:
    """Write a tokenizer folder as in checkpoints, with few words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    symbols = list(bytes_to_unicode().values())
    merges = [(word[:-1], f"{word[-1]}</w>") for word in _WORDS if len(word) == 2]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(first + second for first, second in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    return folder


def _new_checkpoint_tokenizer(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    return folder
