"""The arithmetic of the kernels: operations, bytes, exponentials, and the time that no version can beat.

`gpu_suite.py` measures against it, and the tables of kernels/README.md are drawn from it::

    PYTHONPATH=.:kernels python benchmarks/kernels/roofline.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.page_tables import markdown, with_tables
from benchmarks.provenance import RESULTS, ROOT
from infid_kernels import tuning
from infid_kernels.autotune import label
from infid_kernels.mean_shift import SPLITS
from infid_kernels.measure import SDXL_CALLS, Call
from infid_kernels.targets import ARCHITECTURES

PAGE = ROOT / "kernels" / "README.md"
ELEMENT = 2  # bytes of fp16 and bf16
# What `kernel_resources.py --forms --architecture sm_90 --head-size 64 --json` printed.
FORMS = RESULTS / "kernel-forms.json"
# What `kernel_resources.py --architecture sm_90 --op mixed_attention --json` printed, and before it the same of commit
# 9af3aea, whose kernel had a branch around its first loop.
PRODUCTS = RESULTS / "kernel-products.json"
NOT_MEASURED = "not yet run on a GPU"
# ex2 per clock and SM, compute capability 8.x and 9.0 (CUDA C++ Programming Guide, table of the
# throughput of native arithmetic instructions).
EXPONENTIALS_PER_CLOCK = 16
# Registers and bytes of shared memory of an SM of compute capability 9.0, and the bytes that each block
# takes besides its own (CUDA C++ Programming Guide, table of compute capabilities; Hopper Tuning Guide).
REGISTERS, SHARED, SHARED_OF_BLOCK = 65536, 228 * 1024, 1024


@dataclass(frozen=True)
class Gpu:
    """The vendor's peak rates of a GPU.

    Args:
        name: as in the tables.
        mark: part of the name that the driver reports.
        teraflops: dense fp16 matrix products with fp32 accumulation, 10¹² operations per second.
        terabytes: memory bandwidth, 10¹² bytes per second.
        sms: number of SMs.
        flops_per_clock: dense fp16 operations with fp32 accumulation per clock and SM.
        source: source of the rate and the bandwidth.
    """

    name: str
    mark: str
    teraflops: float
    terabytes: float
    sms: int
    flops_per_clock: int
    source: str

    @property
    def gigahertz(self) -> float:
        """The clock rate behind the vendor's peak rate."""
        return self.teraflops * 1e3 / (self.sms * self.flops_per_clock)


GPUS: Sequence[Gpu] = (
    Gpu("H100 SXM", "H100 80GB HBM3", 989.4, 3.35, 132, 4096, "H100 datasheet; 1978.9 with sparsity, halved"),
    Gpu("H200 SXM", "H200", 989.4, 4.8, 132, 4096, "H200 datasheet; the chip of the H100"),
    Gpu("L40S", "L40S", 362.05, 0.864, 142, 1024, "L40S datasheet"),
    Gpu("RTX 4090", "RTX 4090", 165.2, 1.008, 128, 512, "Ada architecture whitepaper, table of the RTX 4090"),
)


def flops(call: Call) -> int:
    """Return the operations of both products, Q Kᵀ and P V: 2 per multiply-add."""
    return 4 * exponentials(call) * call.d


def exponentials(call: Call) -> int:
    """Return the number of logits: one exponential each."""
    return call.rows * call.heads * call.queries * sum(call.lengths)


def least_bytes(call: Call) -> int:
    """Return the bytes of queries, keys, values and output, each moved once."""
    tokens = 2 * call.queries + 2 * sum(call.lengths)
    return call.rows * call.heads * tokens * call.d * ELEMENT


def shift_bytes(call: Call) -> int:
    """Return the bytes of the mean-shift reduction: all keys and values once, and its partial sums in fp32."""
    keys_and_values = 2 * sum(call.lengths) * call.d * ELEMENT
    return call.rows * call.heads * (keys_and_values + 2 * SPLITS * call.d * 4)


def hidden_shift_bytes(call: Call) -> int:
    """Return the bytes of the other way, W·(μ(h_t) − μ(h_id)): both hidden states, and W_k and W_v, once."""
    channels = call.heads * call.d
    return (call.rows * sum(call.lengths) * channels + 2 * channels**2) * ELEMENT


def limits(call: Call, gpu: Gpu) -> dict[str, float]:
    """Return the microseconds that each unit needs: matrix products, memory, exponentials."""
    raised = EXPONENTIALS_PER_CLOCK * gpu.sms * gpu.gigahertz * 1e3  # per microsecond
    return {
        "products": flops(call) / (gpu.teraflops * 1e6),
        "memory": least_bytes(call) / (gpu.terabytes * 1e6),
        "exponentials": exponentials(call) / raised,
    }


def waves(call: Call, block_m: int, places: int) -> tuple[int, int, float]:
    """Return the tiles, the waves of `places` tiles at once, and the fraction of the waves that has work."""
    tiles = math.ceil(call.queries / block_m) * call.rows * call.heads
    needed = math.ceil(tiles / places)
    return tiles, needed, tiles / (needed * places)


def padded(call: Call, block_n: int) -> float:
    """Return the number of keys with both segments rounded up to full blocks, over their true number."""
    return sum(math.ceil(length / block_n) * block_n for length in call.lengths) / sum(call.lengths)


def gpu_table() -> str:
    """Return one row per GPU."""
    head = ("GPU", "TFLOP/s", "TB/s", "SMs", "FLOP per clock and SM", "clock, GHz", "FLOP/byte", "source")
    return markdown(head, [
        (gpu.name, f"{gpu.teraflops:g}", f"{gpu.terabytes:g}", str(gpu.sms), str(gpu.flops_per_clock),
         f"{gpu.gigahertz:.2f}", f"{gpu.teraflops / gpu.terabytes:.0f}", gpu.source)
        for gpu in GPUS
    ])  # fmt: skip


def call_table() -> str:
    """Return one row per call: its work."""
    head = ("call", "rows × heads", "queries", "keys", "GFLOP", "MB", "FLOP/byte", "million exponentials")
    return markdown(head, [
        (f"`{name}`", f"{call.rows} × {call.heads}", str(call.queries), f"{call.identity} + {call.text}",
         f"{flops(call) / 1e9:.2f}", f"{least_bytes(call) / 1e6:.1f}", f"{flops(call) / least_bytes(call):.0f}",
         f"{exponentials(call) / 1e6:.1f}")
        for name, call in SDXL_CALLS.items()
    ])  # fmt: skip


def clock_table(d: int = 64) -> str:
    """Return one row per GPU: what one logit costs an SM."""
    head = ("GPU", "products, clocks per logit", "exponential, clocks per logit", "products to exponentials")
    raised = 1 / EXPONENTIALS_PER_CLOCK
    return markdown(head, [
        (gpu.name, f"{4 * d} / {gpu.flops_per_clock} = {4 * d / gpu.flops_per_clock:g}",
         f"1 / {EXPONENTIALS_PER_CLOCK} = {raised:g}", f"{4 * d / gpu.flops_per_clock / raised:g} to 1")
        for gpu in GPUS
    ])  # fmt: skip


def floor_table() -> str:
    """Return one row per call and GPU: what each unit needs, the floor, and what was measured."""
    head = ("call", "GPU", "products, µs", "memory, µs", "exponentials, µs", "floor, µs", "measured")
    rows = []
    for name, call in SDXL_CALLS.items():
        for gpu in GPUS:
            needed = limits(call, gpu)
            cells = [f"{microseconds:.1f}" for microseconds in needed.values()]
            rows.append((f"`{name}`", gpu.name, *cells, f"{max(needed.values()):.1f}", measured(name, gpu)))
    return markdown(head, rows)


def shift_table() -> str:
    """Return one row per level: the cost of the mean shift in two ways."""
    head = ["call", "over keys and values, MB", "by hidden states, MB"]
    for gpu in GPUS:
        head.append(f"{gpu.name}: µs, share of the floor")
    rows = []
    for name, call in SDXL_CALLS.items():
        if call.op != "mixed_attention":
            continue
        cells = [f"`{name}`", f"{shift_bytes(call) / 1e6:.1f}", f"{hidden_shift_bytes(call) / 1e6:.1f}"]
        for gpu in GPUS:
            microseconds = shift_bytes(call) / (gpu.terabytes * 1e6)
            cells.append(f"{microseconds:.1f}, {microseconds / max(limits(call, gpu).values()):.0%}")
        rows.append(tuple(cells))
    return markdown(head, rows)


def wave_table() -> str:
    """Return one row per level and tile height: how well the tiles fill the GPUs."""
    chips = sorted({gpu.sms for gpu in GPUS})
    head = ["call", "queries per tile", "tiles", *(f"{chip} SMs: waves, filled" for chip in chips)]
    rows = []
    for name, call in SDXL_CALLS.items():
        for block_m in (128, 64):
            tiles = waves(call, block_m, 1)[0]
            cells = [f"{needed}, {filled:.0%}" for _, needed, filled in (waves(call, block_m, chip) for chip in chips)]
            rows.append((f"`{name}`", str(block_m), str(tiles), *cells))
    return markdown(head, rows)


def padding_table() -> str:
    """Return one row: how much of the merged call's work is padding."""
    blocks = (128, 64, 32)
    head = ("keys of both segments", *(f"blocks of {block}" for block in blocks))
    call = SDXL_CALLS["merged-4096"]
    return markdown(head, [(f"{call.text} + {call.identity}", *(f"{padded(call, block):.2f} ×" for block in blocks))])


def even_table() -> str:
    """Return one row per architecture: the compiler's report of mixed attention with d = 64."""
    rows = []
    for architecture in ARCHITECTURES:
        cells = [architecture]
        for even_n in (True, False):
            row = tuning.entry("mixed_attention", architecture, 64, 0, even_n, only="kernels")
            assert row is not None
            cells.append(_report(row))
        rows.append(tuple(cells))
    return markdown(("architecture", "full blocks", "any length"), rows)


def form_table() -> str:
    """Return one row per candidate form of mixed attention on Hopper: the compiler's report."""
    head = ("form", "registers", "shared memory", "programs per SM", "products in groups", "instructions per 128 keys",
            "any length: registers", "programs per SM")  # fmt: skip
    found: dict[str, dict[bool, dict[str, Any]]] = {}
    for row in json.loads(FORMS.read_text()):
        found.setdefault(label(tuning.Configuration(**row["configuration"])), {})[row["even_n"]] = row
    return markdown(head, [
        (name, str(even["registers"]), str(even["shared_bytes"]), str(_programs(even)), _groups(even),
         f"{_per_128_keys(even):.0f}", *_any_length(forms))
        for name, forms in found.items() for even in (forms[True],)
    ])  # fmt: skip


def _any_length(forms: Mapping[bool, Mapping[str, Any]]) -> tuple[str, str]:
    if False not in forms:
        return "–", "–"
    return str(forms[False]["registers"]), str(_programs(forms[False]))


def _per_128_keys(row: Mapping[str, Any]) -> float:
    """Return the instructions of one warp per 128 keys; there is a main loop per segment, or one in Gluon."""
    loops = 1 if row["configuration"]["gluon"] else 2
    return float(row["loop_instructions"] / loops * 128 / row["configuration"]["block_n"])


def product_table() -> str:
    """Return one row per shipped configuration of mixed attention on Hopper: its machine code before and after."""
    head = ("d", "lengths", "before", "registers", "programs per SM", "products in groups",
            "now", "registers", "programs per SM", "products in groups")  # fmt: skip
    found = json.loads(PRODUCTS.read_text())
    rows = []
    for before, now in zip(found["before"]["rows"], found["now"]["rows"], strict=True):
        cells = [str(now["head_size"]), "full blocks" if now["even_n"] else "any"]
        for row in (before, now):
            form = label(tuning.Configuration(**row["configuration"]))
            cells += [form, str(row["registers"]), str(_programs(row)), _groups(row)]
        rows.append(tuple(cells))
    return markdown(head, rows)


def _programs(row: Mapping[str, Any]) -> int:
    return at_once(row["configuration"]["num_warps"], row["registers"], row["shared_bytes"])


def _groups(row: Mapping[str, Any]) -> str:
    return f"{row['matrix_instructions']['HGMMA']} in {row['product_groups']}"


def at_once(num_warps: int, registers: int, shared_bytes: int) -> int:
    """Return how many programs of a kernel a Hopper SM holds; registers are allocated in units of 8 per thread."""
    by_registers = REGISTERS // (math.ceil(registers / 8) * 8 * 32 * num_warps)
    return int(min(by_registers, SHARED // (shared_bytes + SHARED_OF_BLOCK)))


def _report(row: tuning.Entry) -> str:
    return f"{label(row.configuration)}; {row.evidence}"


def measured(name: str, gpu: Gpu) -> str:
    """Return what `gpu_suite.py` measured of a call in fp16, from the newest of its results on such a GPU.

    That is the operation with its fastest configuration, which the tuning table has from the same results.
    """
    found = [document for document in results() if gpu.mark in document["gpu"]["name"]]
    for document in sorted(found, key=lambda document: str(document["date"]), reverse=True):
        item = document["items"].get(f"tuned {name} float16", {})
        if item.get("state") == "measured":
            ours = item["result"]["contenders"]["infid_kernels"]
            share = f"{ours['of_matrix_ceiling']:.0%} of the run's matrix product"
            return f"{ours['median'] * 1e3:.1f} µs, {ours['teraflops']:.0f} TFLOP/s, {share}"
    return NOT_MEASURED


def trial_table() -> str:
    """Return the fastest candidate of every form on a GPU, in the newest results."""
    document = newest()
    levels = ("mixed attention, 4096 tokens", "mixed attention, 1024 tokens")
    rows = []
    for form in dict.fromkeys(name.partition(": ")[2] for name in document["items"] if name.startswith("candidates")):
        cells = []
        for level in levels:
            item = document["items"].get(f"candidates {level}: {form}")
            trials = [each for each in item["result"]["trials"] if each["timing"]] if item else []
            if trials:
                best = min(trials, key=lambda each: float(each["timing"]["median"]))
                choice = label(tuning.parse_choice(best["configuration"]))
                cells += [choice, f"{best['timing']['median'] * 1e3:.1f}"]
        if len(cells) == 2 * len(levels):
            rows.append(cells)
    rows.sort(key=lambda cells: float(cells[1]))
    gpu = document["gpu"]["name"]
    return markdown((f"4096 tokens, {gpu}", "µs", "1024 tokens", "µs"), rows)


def rival_table() -> str:
    """Return the operations on a GPU and what does the same work in PyTorch, in the newest results."""
    document = newest()
    rows = []
    for op in ("mixed", "merged"):
        columns = {level: _contenders(document, f"{op}-{level}") for level in ("4096", "1024")}
        for name in sorted(columns["4096"], key=columns["4096"].__getitem__):
            cells = (f"{columns[level][name] * 1e3:.1f}" if name in columns[level] else "–" for level in columns)
            rows.append((f"{op} attention" if op == "mixed" else "merged cross-attention", name, *cells))
    return markdown(("operation", document["gpu"]["name"], "4096 queries, µs", "1024 queries, µs"), rows)


def _contenders(document: Mapping[str, Any], call: str) -> dict[str, float]:
    """Return the milliseconds of what does all the work of a call: our operation as tuned, and the baselines."""
    found = {name: item["result"] for name, item in document["items"].items() if "result" in item}
    compiled = found.get(f"compiled baselines {SDXL_CALLS[call].op}", {}).get("calls", {})
    rows = [each.get("contenders", {}) for each in (found.get(f"speed {call} float16", {}), compiled.get(call, {}))]
    times = {name: float(each["median"]) for contenders in rows for name, each in contenders.items()
             if each.get("complete") and "infid" not in name}  # fmt: skip
    ours = found.get(f"tuned {call} float16", {}).get("contenders", {}).get("infid_kernels")
    return ({"**`infid_kernels`**": float(ours["median"])} if ours else {}) | times


def results() -> list[Mapping[str, Any]]:
    """Return the documents that `gpu_suite.py` wrote."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))]


def newest() -> Mapping[str, Any]:
    """Return the newest of these documents."""
    return max(results(), key=lambda document: str(document["date"]))


TABLES = {
    "gpus": gpu_table, "calls": call_table, "clocks": clock_table, "floors": floor_table, "shift": shift_table,
    "waves": wave_table, "products": product_table, "forms": form_table, "padding": padding_table,
    "even": even_table, "trials": trial_table, "rivals": rival_table,
}  # fmt: skip


def drawn() -> str:
    """Return kernels/README.md with its tables drawn."""
    return with_tables([PAGE], {name: draw() for name, draw in TABLES.items()})[PAGE]


if __name__ == "__main__":
    PAGE.write_text(drawn())
