"""Fuzzed shards: tar files and their index; and training checkpoints."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_harness import AcceptedDamageError, Attempt
from fuzz_images import bomb
from mutations import TEXTS, damaged, damaged_json, json_text, odd_value
from small_shards import write_shards

from infid_engines.documents import sealed
from infid_training.run_checkpoint import OPTIMIZER, STATE, WEIGHTS, Checkpoints
from infid_training.shards import INDEX, ShardIndex, check_shard, read_shard

_CROP = 16
_HUGE = 1 << 40


def indices(folder: Path) -> Attempt:
    """Load damaged indices: only unchanged content may be accepted; under a fresh seal it must work or be rejected."""
    shards = write_shards(folder / "shards", _CROP)
    path = shards / INDEX
    content, whole = path.read_bytes(), ShardIndex.load(shards)
    document = json.loads(content)

    def attempt(random: Random) -> None:
        what = random.random()
        if what < 0.4:
            path.write_bytes(damaged(random, content))
        else:
            odd = damaged_json(random, document)
            if what > 0.7 and isinstance(odd, dict):
                path.write_bytes(json_text(random, sealed({**odd, "version": document["version"]})))
                for shard in ShardIndex.load(shards).shards:
                    check_shard(shards, shard)
                return
            path.write_bytes(json_text(random, odd))
        if ShardIndex.load(shards) != whole:
            raise AcceptedDamageError("another index")

    return attempt


def tars(folder: Path) -> Attempt:
    """Read damaged shards: the hash detects it, and without the hash they are read to the end or rejected."""
    shards = write_shards(folder / "shards", _CROP)
    shard = ShardIndex.load(shards).shards[0]
    path = shards / shard.file
    content = path.read_bytes()
    members = _members(content)
    said = {name: json.loads(member) for name, member in members if name.endswith(".json")}

    def attempt(random: Random) -> None:
        odd = damaged(random, content) if random.random() < 0.4 else _odd_tar(random, members, said)
        path.write_bytes(odd)
        if random.random() < 0.3:
            check_shard(shards, shard)
            if odd != content:
                raise AcceptedDamageError("another shard")
        for photo in read_shard(path):
            if photo.target.dtype != np.uint8 or not np.isfinite(photo.embedding).all():
                raise AcceptedDamageError(photo.name)

    return attempt


def _members(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def _odd_tar(random: Random, members: list[tuple[str, bytes]], said: dict[str, Any]) -> bytes:
    """Return an intact tar file with odd members."""
    chosen = list(members)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not chosen:
            break
        place = random.randrange(len(chosen))
        name, content = chosen[place]
        what = random.random()
        if what < 0.1:
            del chosen[place]
        elif what < 0.2:
            chosen.insert(place, chosen[random.randrange(len(chosen))])
        elif what < 0.3:
            chosen[place] = (
                random.choice([text for text in TEXTS if text.isascii() and "\0" not in text] + [name[:4]]),
                content,
            )
        else:
            chosen[place] = (name, _odd_content(random, name, content, said))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for name, content in chosen:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if random.random() < 0.02:
                member.type = random.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                member.linkname, member.size = "/etc/passwd", 0
            if random.random() < 0.02:  # a sparse file: no bytes, but a nonzero size
                member.pax_headers = {
                    "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.realsize": str(_HUGE),
                    "GNU.sparse.size": str(_HUGE), "GNU.sparse.map": f"{_HUGE - 4},4", "GNU.sparse.numblocks": "1",
                }  # fmt: skip
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _odd_content(random: Random, name: str, content: bytes, said: dict[str, Any]) -> bytes:
    if name in said and random.random() < 0.7:
        return json_text(random, damaged_json(random, said[name]))
    if name.endswith(".npy") and random.random() < 0.6:
        return _odd_array(random)
    if name.endswith((".png", ".jpg")) and random.random() < 0.01:
        return bomb(random)
    return damaged(random, content)


def _odd_array(random: Random) -> bytes:
    """Return an .npy file with an odd header."""
    shape: Any = random.choice(((512,), (_HUGE,), (_HUGE, _HUGE), (-1,), (), (2, 256), (2**62, 4), "x", (10**30,)))
    kind = random.choice(("<f4", "<f8", ">f4", "|O", "<U9", "<M8[s]", "|V4", "<f2", "nonsense"))
    header = f"{{'descr': {kind!r}, 'fortran_order': {random.choice((True, False, 1, None))}, 'shape': {shape!r}, }}"
    if random.random() < 0.2:
        header = random.choice(("(" * 3000, "{" * 90, "__import__('os')", "{'descr': '<f4'}", "\0", "1" * 9000))
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(2048)


def run_states(folder: Path) -> Attempt:
    """Read damaged checkpoint states: only unchanged content may be accepted."""
    step = folder / "step-00000002"
    step.mkdir()
    for name in (WEIGHTS, OPTIMIZER):
        (step / name).write_bytes(b"weights")
    settings = {"steps": 6, "learning_rate": 1e-4, "model": "demo", "identity": {"clip_tokens": 5, "adain": "mean"}}
    document = sealed(
        {"version": 2, "step": 2, "settings": settings, "files": {WEIGHTS: "0" * 64}, "optimizer": {}, "scaler": {}}
    )
    path = step / STATE
    path.write_text(json.dumps(document))
    content, checkpoints = path.read_bytes(), Checkpoints(folder, settings, keep=1)
    whole = checkpoints.state()
    assert whole is not None

    def attempt(random: Random) -> None:
        odd = odd_value(random) if random.random() < 0.05 else damaged_json(random, document)
        path.write_bytes(damaged(random, content) if random.random() < 0.4 else json_text(random, odd))
        if checkpoints.state() != whole:
            raise AcceptedDamageError("another state")

    return attempt
