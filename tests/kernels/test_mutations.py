"""Every part of the kernels' arithmetic is necessary: without it, the table of cases fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import infid_kernels

PACKAGE = Path(infid_kernels.__file__).parent
TESTS = Path(__file__).parent / "test_attention_kernels.py"
WORKER = Path(__file__).parent / "mutation_worker.py"
DESCRIPTORS, LIBRARY, SHIFT = (
    "mixed_attention_by_descriptors", "mixed_attention_by_a_library", "merged_cross_attention_with_the_shift",
)  # fmt: skip
# name: file, original source, mutated source, the tests that must fail
MUTATIONS = {
    "δ_k is dropped": (
        "mixed_attention_triton.py", "* delta_k[None, :], 1) * scale", "* delta_k[None, :], 1) * 0.0", "mixed"
    ),
    "δ_v is dropped": ("mixed_attention_triton.py", "row_sum[:, None] * delta_v", "0.0 * delta_v", "mixed"),
    "segments are swapped": (
        "mixed_attention_triton.py", "[*operands.segments]", "[*operands.segments[2:], *operands.segments[:2]]",
        "mixed",
    ),
    "the mean is not of the text": ("mean_shift.py", "text_sum / text_length - id_sum / id_count", "id_sum", "mixed"),
    "a chunk of the mean is left out": (
        "mean_shift.py", "split * BLOCK_N, length", "(split + 1) * BLOCK_N, length", "mixed"
    ),
    "the tail is not masked": (
        "attend.py", "offs_n[None, :] < tail, tl.dot", "offs_n[None, :] < BLOCK_N, tl.dot", "mixed"
    ),
    "the tail is skipped": ("attend.py", "if tail > 0:", "if tail > BLOCK_N:", "merged"),
    "the scale is wrong": ("arguments.py", "1 / math.sqrt(d)", "1 / d", "merged"),
    "log2 e is forgotten": ("mixed_attention_triton.py", "* 1.4426950408889634", "* 1.0", "mixed"),
    "the state is not rescaled": ("attend.py", "acc * alpha[:, None]", "acc", "merged"),
    "descriptors read the first head": ("attend.py", "head.to(tl.int32)", "0", DESCRIPTORS),
    "descriptors read the first row": ("attend.py", "[row.to(tl.int32)", "[0", DESCRIPTORS),
    "λ is dropped": ("merged_cross_attention_triton.py", "result += factor *", "result +=", "merged"),
    "merged δ_v is dropped": ("merged_cross_attention_triton.py", "+ delta_v[None, :])", ")", "merged"),
    "λ counts without a person": (
        "merged_cross_attention_triton.py", "identity_length > 0, tl", "identity_length >= 0, tl", "merged"
    ),
    "without a person a sum of 0 divides": (
        "merged_cross_attention_triton.py", "id_sum > 0, id", "id_sum >= 0, id", "merged"
    ),
    "the given δ_v is not read": (
        "merged_cross_attention_triton.py", 'check_shift("shift_v", shift_v, q).', "torch.zeros_like(shift_v).", SHIFT
    ),
    "the merge ignores δ_k": ("library_attention.py", "id_lse + logit_bias - text_lse", "id_lse - text_lse", LIBRARY),
    "the merge ignores δ_v": ("library_attention.py", "+ delta_v[None, :])", ")", LIBRARY),
    "the merge's scale is forgotten": ("library_attention.py", ", 1) * logit_scale", ", 1)", LIBRARY),
    "the merge swaps the weights": ("library_attention.py", "(1 - w) * text", "w * text", LIBRARY),
}  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_fails_the_table(name: str, worker: subprocess.Popen[str], tmp_path: Path) -> None:
    file, before, after, op = MUTATIONS[name]
    shutil.copytree(PACKAGE, tmp_path / "infid_kernels")
    mutated = tmp_path / "infid_kernels" / file
    source = mutated.read_text()
    assert source.count(before) == 1, f"{file} has changed: {before!r} stands there {source.count(before)} times"
    mutated.write_text(source.replace(before, after))
    assert worker.stdin is not None and worker.stdout is not None
    task = {"folder": str(tmp_path), "tests": str(TESTS), "expression": f"test_{op}"}
    print(json.dumps(task), file=worker.stdin, flush=True)
    code, output = json.loads(worker.stdout.readline())
    assert code == 1, output
    assert "AssertionError: relative RMS" in output
