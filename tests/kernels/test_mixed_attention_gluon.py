"""The Gluon form of mixed attention: its source on a model of Hopper, its machine code, and the calls it accepts."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import gluon_model
import pytest
import torch
from gluon_model import Descriptor, HazardError, Pointer
from torch import Tensor

from infid_kernels import attend_gluon, mixed_attention_gluon
from infid_kernels.arguments import logit_scale
from infid_kernels.measure import LIMITS, Call, Inputs, relative_rms
from infid_kernels.mixed_attention_gluon import launch_mixed_attention_gluon, rejection, takes
from infid_kernels.operands import Operands
from infid_kernels.sass import SHARED_LIMIT
from infid_kernels.tuning import GLUON_CANDIDATES

SPLITS = 4  # parts of the shifts
TILE = (16, 8)  # queries and keys; the model accepts any
SOURCE = Path(attend_gluon.__file__)
BARRIER = "    cta_barrier()\n"


def shift_parts(text: Tensor, identity: Tensor, strength: Tensor) -> Tensor:
    """Return fp32 `[B, H, SPLITS, d]` whose sum over axis 2 is s·(μ(text) − μ(identity)); μ of no tokens is 0."""
    count = max(1, identity.shape[2])
    mean = text.double().mean(2, keepdim=True) - identity.double().sum(2, keepdim=True) / count
    parts = torch.randn(*mean.shape[:2], SPLITS, mean.shape[3], dtype=torch.float64)
    parts += (strength.double().view(-1, 1, 1, 1) * mean - parts.sum(2, keepdim=True)) / SPLITS
    return parts.float()


def descriptor(tensor: Tensor, tokens: int, within_row: bool) -> Descriptor:
    rows, heads, length, d = tensor.shape
    matrix = tensor.transpose(1, 2).reshape(rows * length, heads * d)
    return Descriptor(matrix, (tokens, d), length if within_row else 0)


def run(module: ModuleType, call: Call, inputs: Inputs, stages: int) -> Tensor:
    """Run the kernel's source on the model, and return its output, which was filled with NaN before."""
    i, (block_m, block_n) = inputs, TILE
    out = torch.full((call.rows, call.queries, call.heads, call.d), math.nan, dtype=i.q.dtype)
    strides = out.transpose(1, 2).stride()
    segment = (i.k_id, i.v_id) if call.identity else (i.k_t, i.v_t)
    k_id, v_id, k_t, v_t = (descriptor(each, block_n, True) for each in (*segment, i.k_t, i.v_t))
    shifts = [shift_parts(*pair, i.style_strength) for pair in ((i.k_t, i.k_id), (i.v_t, i.v_id))]
    gluon_model.launch(
        module, "mixed_attention_gluon_kernel", (math.ceil(call.queries / block_m), call.rows * call.heads), call.heads,
        Pointer.to(out), q=descriptor(i.q, block_m, False), k_id=k_id, v_id=v_id, k_t=k_t, v_t=v_t,
        shift_k=Pointer.to(shifts[0]), shift_v=Pointer.to(shifts[1]), queries=call.queries,
        identity_length=call.identity, text_length=call.text, stride_ob=strides[0], stride_oh=strides[1],
        stride_on=strides[2], logit_scale=logit_scale(None, call.d), D=call.d, SPLITS=SPLITS, BLOCK_M=block_m,
        BLOCK_N=block_n, STAGES=stages,
    )  # fmt: skip
    return out.transpose(1, 2)


def error(module: ModuleType, call: Call, stages: int, dtype: torch.dtype = torch.float16) -> float:
    """Return the relative RMS error of the kernel's source against float64."""
    inputs = call.inputs(dtype, torch.Generator().manual_seed(0))
    return relative_rms(run(module, call, inputs, stages), call.reference(inputs))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("identity", range(5))
@pytest.mark.parametrize("text", range(1, 6))
def test_every_number_of_blocks_in_every_number_of_stages(identity: int, text: int, stages: int) -> None:
    call = Call("mixed_attention", 1, 1, 16, identity * TILE[1], text * TILE[1], 64)
    assert error(attend_gluon, call, stages) < LIMITS[torch.float16]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("identity", [0, 24])
def test_rows_heads_and_a_partial_last_tile(identity: int, d: int, dtype: torch.dtype) -> None:
    call = Call("mixed_attention", 2, 3, 39, identity, 40, d)
    assert error(attend_gluon, call, 2, dtype) < LIMITS[dtype]


# name: original source, mutated source, the hazard (none: the result is wrong)
MUTATIONS: Mapping[str, tuple[str, str, str]] = {
    "a step waits for the wrong phase": ("(block // STAGES) & 1", "0", "was waited for already"),
    "the last wait is for the wrong phase": ("(blocks // STAGES) & 1", "0", "was waited for already"),
    "the softmax waits for no product": ("mma_wait(1", "mma_wait(2", "used before it is complete"),
    "the step does not wait for its values": ("wait(0, deps=(acc, nex", "wait(1, deps=(acc, nex", "used before it is"),
    "keys land in the values' buffer": ("k_s, block + STAGES", "v_s, block + STAGES", "while a product reads it"),
    "P in flight is not held": ("deps=(acc, next_p, p)", "deps=(acc, next_p, acc)", "not held"),
    "another warpgroup may read the keys": (f"    {BARRIER}        _load_keys", "        _load_keys", "armed before"),
    "another warpgroup may read the values": (f"    {BARRIER}        _load_val", "        _load_val", "before all"),
    "the first keys are overwritten early": (f"{BARRIER}    _load_keys", "    _load_keys", "armed before all threads"),
    "half of a pair's bytes are announced": ("2 * BLOCK_N * D * 2", "BLOCK_N * D * 2", "expects -1024 bytes"),
    "bytes are announced that are not copied": (", pred=pair <= blocks)", ")", "invalidated that is not idle"),
    "the values are not copied": ("pred=issue", "pred=issue & (block > id_blocks)", "expects 1024 bytes"),
    "the last pair is missing": ("pair <= blocks", "pair < blocks", "never comes"),
    "the last pair's keys are the next row's": ("gl.minimum(pair, blocks - 1)", "pair", "tokens from 32 on"),
    "the values are those of the keys' block": ("pair - 1", "pair", "tokens from 32 on"),
    "a stage is skipped": ("block + STAGES", "block + STAGES + 1", "armed twice"),
    "the segments are swapped": ("if block < id_blocks:", "if block >= id_blocks:", "tokens from -24 on"),
    "the text starts too late": ("row * text_length - identity_length", "row * text_length", "tokens from 32 on"),
    "the identity's row is the first": ("id_start, text_start = row *", "id_start, text_start = 0 *", "all of row 1"),
    "one head is read for all": ("channel = head * D", "channel = 0", ""),
    "TMA does not see the barriers": ("fence_async_shared()\n", "\n", "TMA does not see"),
    "the threads do not see the barriers": (f"shared()\n{BARRIER}", "shared()\n", "armed before all threads"),
    "a barrier is left valid": ("    mbarrier.invalidate(q_bar)\n", "", "left valid"),
    "a tile reaches into the next row": ("[:, None] < queries", "[:, None] < queries + 16", "beyond the output"),
    "δ_k is dropped": ("logit_bias = id_mask * logit_bias", "logit_bias = 0.0 * logit_bias", ""),
    "δ_k is added to the text as well": ("logit_bias = id_mask * logit_bias", "logit_bias = 1.0 * logit_bias", ""),
    "δ_v is dropped": ("[:, None] * delta_v", "[:, None] * 0.0 * delta_v", ""),
    "δ_v is added for the text": ("id_mask * block_sum", "block_sum", ""),
    "id_sum is not rescaled": ("id_sum * alpha", "id_sum", ""),
    "row_sum is not rescaled": ("row_sum * alpha", "row_sum", ""),
    "the accumulator is not rescaled": ("acc * gl.convert_layout(alpha", "acc * gl.convert_layout(alpha**0", ""),
    "log2 e is forgotten": ("logit_scale * 1.4426950408889634", "logit_scale", ""),
}  # fmt: skip


def mutated(folder: Path, before: str, after: str) -> ModuleType:
    """Return the kernel's module with a change; it is not registered, so the original is not affected."""
    text = SOURCE.read_text()
    assert before in text, f"{SOURCE.name} has changed: {before!r} does not stand there"
    path = folder / "mutated_gluon.py"
    path.write_text(text.replace(before, after))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_a_hazard_or_a_wrong_result(name: str, tmp_path: Path) -> None:
    before, after, hazard = MUTATIONS[name]
    module = mutated(tmp_path, before, after)
    call = Call("mixed_attention", 2, 2, 24, 3 * TILE[1], 4 * TILE[1], 64)
    if hazard:
        with pytest.raises(HazardError, match=hazard):
            error(module, call, 2)
    else:
        assert error(module, call, 2) > 0.05


# Compiles every candidate in a process without the interpreter, and prints facts about its machine code.
PROGRAM = """
import json, sys, torch
from triton.runtime.jit import mangle_type
from infid_kernels import mixed_attention_gluon as form
from infid_kernels.compile import compile_code
from infid_kernels.sass import read_machine_code
from infid_kernels.tuning import GLUON_CANDIDATES

dtype, rows = sys.argv[1], []
for d, configurations in GLUON_CANDIDATES.items():
    for c in configurations:
        compiled = compile_code("mixed_attention", "sm_90", d, c, dtype)
        code = read_machine_code(compiled.asm["cubin"])
        tensors = torch.zeros(2, 256, 4, d, dtype=getattr(torch, dtype)).transpose(1, 2)
        tokens = {"q": c.block_m, "k_id": c.block_n, "v_t": c.block_n}
        launched = {name: mangle_type(form._descriptor(tensors, each)) for name, each in tokens.items()}
        rows.append({
            "name": f"d = {d}, {c}", "registers": code.registers, "stack": code.stack_bytes,
            "shared": compiled.metadata.shared, "instructions": code.instructions, "loop": list(code.loop_code),
            "compiled": {name: compiled.src.signature[name] for name in tokens}, "launched": launched,
        })
print(json.dumps(rows))
"""
Row = dict[str, Any]


@cache
def resources(dtype: str) -> Sequence[Row]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    command = [sys.executable, "-c", PROGRAM, dtype]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return list(json.loads(found.stdout))


def steps(loop: Sequence[str]) -> list[str]:
    """Return the relevant instructions of the main loop in order; S = Q Kᵀ and O = P V differ in their left operand."""
    kinds = {
        r"HGMMA\S* R\d+, gdesc": "S", r"HGMMA\S* R\d+, R\d+, gdesc": "O", r"WARPGROUP\.DEPBAR\S* gsb0, 0x1": "wait 1",
        r"WARPGROUP\.DEPBAR\S* gsb0, 0x0": "wait 0", r"MUFU\.EX2": "exp", r"BAR\.SYNC": "barrier", r"UTMALDG": "copy",
        r"SYNCS\.ARRIVE": "expect",
    }  # fmt: skip
    return [kind for line in loop for pattern, kind in kinds.items() if re.match(pattern, line)]


def short(order: Sequence[str]) -> str:
    """Return the steps without consecutive repetitions."""
    return ", ".join(name for name, _ in itertools.groupby(order))


def wrong(row: Row) -> list[str]:
    """Return the problems in a kernel's machine code, one phrase each."""
    found = []
    counts = {name: sum(each for full, each in row["instructions"].items() if full.startswith(name))
              for name in ("HGMMA", "WARPGROUP.ARRIVE")}  # fmt: skip
    if row["stack"]:
        found.append(f"{row['stack']} bytes of registers are spilled")
    if row["shared"] > SHARED_LIMIT["sm_90"]:
        found.append(f"{row['shared']} bytes of shared memory are more than an SM has")
    if not 0 < counts["WARPGROUP.ARRIVE"] < counts["HGMMA"] / 2:
        found.append(f"the products are serialized: {counts}")
    order = steps(row["loop"])
    products = "".join(each for each in order if each in "SO")
    if not re.fullmatch("S+O+", products):
        found.append(f"the products are not in order: {products}")
    if [each for each in order if each.startswith("wait")] != ["wait 1", "wait 0"]:
        return [*found, f"the waits are not in order: {short(order)}"]
    first, second = order.index("wait 1"), order.index("wait 0")
    if "S" in order[first:] or "O" in order[first:]:
        found.append("a product is issued after the waits")
    raised = order.count("exp")
    if not raised or order[first:second].count("exp") < raised / 2:
        found.append(f"{order[first:second].count('exp')} of {raised} exponentials run under the second product")
    keys, values = order[first:second], order[second:]
    for name, part in {"keys": keys, "values": values}.items():
        if part.count("copy") != 1 or "barrier" not in part[: part.index("copy")]:
            found.append(f"the {name} are not copied once behind their wait and a barrier: {short(part)}")
    before = keys[: keys.index("expect")] if "expect" in keys else []
    if "copy" in order[:first] or "barrier" not in before:
        found.append("a copy is announced before its buffer is known to be free")
    return found


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_candidate_is_good_machine_code(dtype: str) -> None:
    rows = resources(dtype)
    assert len(rows) == sum(len(each) for each in GLUON_CANDIDATES.values())
    faults = {row["name"]: wrong(row) for row in rows}
    assert {name: found for name, found in faults.items() if found} == {}


def test_three_programs_of_the_first_candidate_are_on_an_sm() -> None:
    first = resources("float16")[0]
    assert first["registers"] <= 168 and 3 * (first["shared"] + 1024) <= 228 * 1024


def test_what_is_compiled_is_what_is_launched() -> None:
    for row in resources("float16"):
        assert row["compiled"] == row["launched"]


LOOP = ["HGMMA.64x128x16.F32 R24, gdesc[UR12], RZ, !UPT"] * 4 + ["HGMMA.64x64x16.F32 R88, R120, gdesc[UR12], R88"] * 8
LOOP += ["WARPGROUP.DEPBAR.LE gsb0, 0x1", "BAR.SYNC.DEFER_BLOCKING 0x0", *["MUFU.EX2 R1, R1"] * 33, "SYNCS.ARRIVE RZ",
         "UTMALDG.2D [UR16], [UR14]", "WARPGROUP.DEPBAR.LE gsb0, 0x0", *["MUFU.EX2 R1, R1"] * 33,
         "BAR.SYNC.DEFER_BLOCKING 0x0", "UTMALDG.2D [UR32], [UR22]"]  # fmt: skip
GOOD: Row = {
    "stack": 0,
    "shared": 74776,
    "instructions": {"HGMMA.64x64x16.F32": 24, "WARPGROUP.ARRIVE": 4},
    "loop": LOOP,
}


def moved(line: int, to: int) -> list[str]:
    rest = [*LOOP[:line], *LOOP[line + 1 :]]
    return [*rest[:to], LOOP[line], *rest[to:]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, []),
        ({"stack": 8}, ["8 bytes of registers are spilled"]),
        ({"shared": 232449}, ["more than an SM has"]),
        ({"instructions": {"HGMMA.64x64x16.F32": 24, "WARPGROUP.ARRIVE": 24}}, ["serialized"]),
        ({"instructions": {}}, ["serialized"]),
        ({"loop": [*LOOP[4:12], *LOOP[:4], *LOOP[12:]]}, ["the products are not in order: OOOOOOOOSSSS"]),
        ({"loop": moved(11, 13)}, ["a product is issued after the waits"]),
        ({"loop": [line.replace("0x1", "0x0") for line in LOOP]}, ["the waits are not in order"]),
        ({"loop": moved(14, 60)}, ["32 of 66 exponentials run under the second product"]),
        ({"loop": moved(13, 48)}, ["are not copied once", "a copy is announced before"]),
        ({"loop": moved(83, 85)}, ["the values are not copied once behind their wait and a barrier"]),
    ],
)
def test_bad_machine_code_is_reported(change: Row, says: Sequence[str]) -> None:
    found = wrong(GOOD | change)
    assert len(found) == len(says), found
    assert all(part in fault for part, fault in zip(says, found, strict=True))


def tensors(d: int = 64, identity: int = 256, text: int = 256, dtype: torch.dtype = torch.float16) -> Operands:
    """Return the operands as views of `[B, N, H·d]` projections."""
    lengths = (200, identity, identity, text, text)
    return Operands(*(torch.zeros(2, length, 4, d, dtype=dtype).transpose(1, 2) for length in lengths))


CONFIGURATION = GLUON_CANDIDATES[64][0]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_attention_gluon, "_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("hopper")
def test_it_takes_what_projections_leave() -> None:
    assert takes(tensors(), CONFIGURATION)
    assert takes(tensors(d=128, dtype=torch.bfloat16), GLUON_CANDIDATES[128][0])
    assert takes(tensors(identity=0), CONFIGURATION)  # no person
    fused = torch.zeros(2, 256, 3 * 4 * 64, dtype=torch.float16).view(2, 256, 3, 4, 64).permute(2, 0, 3, 1, 4)
    assert takes(Operands(*fused, *fused[1:]), CONFIGURATION)  # one projection for queries, keys and values
    rows = [torch.cat([each, each])[2:] for each in (each.transpose(1, 2) for each in tensors())]
    assert takes(Operands(*(each.transpose(1, 2) for each in rows)), CONFIGURATION)  # some rows of a batch
    one = torch.zeros(2, 4, 1, 64, dtype=torch.float16)
    assert takes(tensors()._replace(q=one), CONFIGURATION)  # a single query


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"identity": 192}, "full blocks of 128 keys, got 192 and 256"),
        ({"text": 300}, "full blocks of 128 keys, got 256 and 300"),
        ({"d": 80}, "head sizes of 64 and 128"),
        ({"dtype": torch.float32}, "in torch.float32"),
    ],
)
def test_it_rejects_what_it_cannot_compute(change: Mapping[str, Any], says: str) -> None:
    found = tensors(**change)
    assert says in rejection(found, CONFIGURATION)
    assert not takes(found, CONFIGURATION)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("index", range(5))
def test_it_rejects_what_is_stored_otherwise(index: int) -> None:
    name = ("q", "k_id", "v_id", "k_t", "v_t")[index]
    good = tensors()
    odd = torch.zeros(2, 256, 4 * 64 + 4, dtype=torch.float16)[:, : good[index].shape[2], :256]
    shape = (2, 4, 256, 64) if index else (2, 4, 200, 64)
    for bad in (
        torch.zeros(shape, dtype=torch.float16),  # the heads are not contiguous
        torch.zeros(1, *shape[1:], dtype=torch.float16).transpose(1, 2).contiguous().transpose(1, 2).expand(shape),
        odd.unflatten(2, (4, 64)).transpose(1, 2),  # 8 bytes off a 16-byte boundary
        torch.zeros(2, 300, 4, 64, dtype=torch.float16)[:, : shape[2]].transpose(1, 2),  # a gap between the rows
        torch.zeros(2 * shape[2] * 256 + 1, dtype=torch.float16)[1:].view(2, shape[2], 4, 64).transpose(1, 2),
    ):
        found = good._replace(**{name: bad})
        assert f"TMA reads {name} as a matrix" in rejection(found, CONFIGURATION)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_warps": 2}, "64 queries at a time, got 64 with 2 warps"),
        ({"num_warps": 8}, "64 queries at a time, got 64 with 8 warps"),
    ],
)
def test_it_rejects_other_forms(change: Mapping[str, Any], says: str) -> None:
    assert says in rejection(tensors(), replace(CONFIGURATION, **change))


def test_it_is_for_hopper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert not takes(tensors(), CONFIGURATION)
    monkeypatch.setattr(mixed_attention_gluon, "_capability", lambda device: (10, 0))
    assert not takes(tensors(), CONFIGURATION)
    out, shift = tensors()[0], torch.zeros(2, 4, SPLITS, 64)
    with pytest.raises(ValueError, match="the Gluon form of mixed attention cannot compute this call"):
        launch_mixed_attention_gluon(tensors(identity=77), (shift, shift), 0.125, out, CONFIGURATION)


@pytest.mark.parametrize("lost", ["triton.experimental.gluon", "triton.experimental.gluon.language.nvidia.hopper"])
def test_without_gluon_the_kernels_import_and_say_so(lost: str) -> None:
    program = f"""
import sys
sys.modules[{lost!r}] = None
import infid_kernels, infid_kernels.compile
from infid_kernels import mixed_attention_gluon as form
from infid_kernels.operands import Operands
from infid_kernels.tuning import GLUON_CANDIDATES
operands = Operands(*[__import__("torch").zeros(1, 1, 128, 64)] * 5)
assert "lacks the Gluon features" in form.rejection(operands, GLUON_CANDIDATES[64][0])
try:
    infid_kernels.compile.compile_gluon("sm_90", 64, GLUON_CANDIDATES[64][0])
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "lacks the Gluon features for Hopper that the kernel needs" in found.stdout
