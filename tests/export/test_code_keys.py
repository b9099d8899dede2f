"""Editing code makes stale what depends on it, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch

from infid_export.export import code_closure, code_keys
from infid_export.export.build_options import BuildOptions
from infid_export.export.code_closure import Code, Name, named, parse
from infid_export.export.code_keys import code_hash
from infid_export.export.graphs import GRAPHS
from infid_export.export.plan import make_plan
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.checkpoints.single_file import SingleFileSource
from infid_export.model.shipped import ShippedSource

STEPS = ("denoise_step", "text_step", "identity_step", "single_step")
KINDS = {
    **{kind: (kind,) for kind in ("fused", "plugins", "tokenizer", "faces")},
    **{kind: (kind, ShippedSource) for kind in ("weights", "vae_range", "image")},
    "checkpoint's weights": ("weights", CheckpointSource),
    "single file's weights": ("weights", SingleFileSource),
    **{f"graph {name}": ("graph", type(graph)) for name, graph in GRAPHS.items()},
    **{f"parity {name}": ("parity", type(graph), ShippedSource) for name, graph in GRAPHS.items()},
}
Keys = Callable[[], dict[str, str]]


@pytest.fixture
def keys() -> Iterator[Keys]:
    def computed() -> dict[str, str]:
        code_hash.cache_clear()
        return {label: code_hash(*arguments) for label, arguments in KINDS.items()}

    yield computed
    code_hash.cache_clear()


def edit(monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str) -> None:
    """Make a module's source read as if it had been edited."""
    path = code_closure.source_file(module)
    assert path is not None
    source = path.read_text()
    assert old in source
    edited, read = parse(module, source.replace(old, new, 1)), code_closure._module
    monkeypatch.setattr(code_closure, "_module", lambda name: edited if name == module else read(name))


def of(kind: str, graphs: Any) -> set[str]:
    return {f"{kind} {name}" for name in graphs}


ATTENTION = of("graph", STEPS) | of("parity", STEPS) | {"image"}
WEIGHTS = {"weights", "checkpoint's weights", "single file's weights"}
EDITS = {
    "a kernel": (
        "infid_kernels.mixed_attention_triton", "acc = tl.zeros([BLOCK_M", "acc = tl.full([BLOCK_M",
        {"fused", "plugins"},
    ),
    "its reference": (
        "infid_kernels.mixed_attention_triton", "torch.cat([adain_mean(k_id, k_t, strength), k_t]",
        "torch.cat([k_t, adain_mean(k_id, k_t, strength)]", ATTENTION,
    ),
    "what stands for an operation": (
        "infid_kernels.ops", "TORCH = AttentionOps(mixed_attention_reference", "TORCH = AttentionOps(mixed_attention",
        ATTENTION,
    ),
    "the update of a step": ("infid_export.model.step", "return uncond + ", "return uncond - ", ATTENTION),
    "a graph": (
        "infid_export.export.graphs.vae_decoder", '{"latents": sizes.latents}', '{"z": sizes.latents}',
        {"graph vae_decoder", "parity vae_decoder"},
    ),
    "a graph's parity inputs": (
        "infid_export.export.graphs.text_step", 'stream_values("text", one)', 'stream_values("identity", one)',
        of("parity", ("text_step", "identity_step")),
    ),
    "the schedule": (
        "infid_export.sampling.noise_schedule", '"beta_end": 0.012', '"beta_end": 0.013',
        of("parity", STEPS) | {"image", "checkpoint's weights", "single file's weights"},
    ),
    "noise": (
        "infid_export.runtime.denoise", "each.standard_normal(shape", "each.normal(shape",
        of("parity", GRAPHS) | {"vae_range", "image"},
    ),
    "the seeds of an image": (
        "infid_export.runtime.denoise", "default_rng(each) for each", "default_rng(each + 1) for each", {"image"},
    ),
    "the weights' layout": (
        "infid_export.export.weights", "text += b\" \" * (-(len(text) + 8) % 64)",
        "text += b\" \" * (-(len(text) + 8) % 32)", WEIGHTS | of("graph", GRAPHS),
    ),
    "the original layout": (
        "infid_export.model.checkpoints.original_layout", '("conv_out", "out.2")', '("conv_out", "out.3")',
        {"single file's weights"},
    ),
    "how a stored network is read": (
        "infid_export.model.checkpoints.stored_network", "stored.chunk(3)[place.third]",
        "stored.chunk(3)[-place.third]", {"single file's weights"},
    ),
    "a sentence for the user": ("infid_engines.errors", "class InputError", "class  InputError", set()),
}  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "stale"), EDITS.values(), ids=EDITS)
def test_an_edit_makes_stale_what_it_decides(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str, stale: set[str]
) -> None:
    before = keys()
    edit(monkeypatch, module, old, new)
    after = keys()
    assert {label for label in KINDS if before[label] != after[label]} == stale


def test_the_denoising_loop_is_compared_again_as_a_picture_alone(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    edit(monkeypatch, "infid_export.runtime.denoise", "def denoise(", "def denoise(  ")
    after = keys()
    assert {label for label in KINDS if before[label] != after[label]} == {"image"}


def test_the_kernels_table_decides_plugins(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr(code_keys, "_DATA", {"plugins": "py.typed"})
    after = keys()
    assert {label for label in KINDS if before[label] != after[label]} == {"plugins"}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_runs_in_a_graph_decides_it(name: str) -> None:
    """All of our functions that a graph's module calls are part of the code in its key."""
    graph = GRAPHS[name]
    plan = make_plan(BuildOptions(graphs=(name,), backends=("onnxruntime",), streams=graph.streams[0]))
    parts = {part: plan.source.empty(part).to("meta") for part in graph.components.values()}
    arguments = graph.arguments(plan.writers.exporter.sizes(), torch.float32)
    ran: set[tuple[str, int]] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        module, code = str(frame.f_globals.get("__name__")), frame.f_code
        written = not code.co_filename.startswith("<")  # and not generated by dataclasses
        if event == "call" and written and module.partition(".")[0] in code_keys._PACKAGES:
            ran.add((module, code.co_firstlineno))

    graph.module(parts, plan.source.config)  # its imports run too
    sys.setprofile(watch)
    try:
        with torch.no_grad():
            graph.module(parts, plan.source.config)(**arguments)
    finally:
        sys.setprofile(None)
    code = code_keys._CODE["graph"]
    starts = (*code.starts, f"{type(graph).__module__}:{type(graph).__qualname__}")
    places = Code(starts, code.stops, code.without, code_keys._PACKAGES).statements()
    missed = [
        (module, line)
        for module, line in ran
        if not any(place.module == module and place.first <= line <= place.last for place in places)
    ]
    assert len(ran) > 1
    assert missed == []


SOURCE = """
import package.other as other
from package.third import used, unused
from package import submodule

def start(x: "Text") -> Shown:
    from package.lazy import late
    shown = other.attribute
    return used(late) + submodule.part(helper) + optional

class Shown:
    shown: int
    def kept(self): return one
    def left(self): return two

try:
    from package.optional import optional
except ImportError:
    optional = None

one, two = 1, 2
helper = {}

@helper.register
def _(x): return three

three = 3
helper["a"] = four
four = 4
"""


def test_names_are_followed_through_statements_and_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "package": "",
        "package.main": SOURCE,
        "package.other": "attribute = 1\nunread = 2\n",
        "package.third": "from package.fourth import used\nunused = 1\n",
        "package.fourth": "def used(x): ...\n",
        "package.submodule": "def part(x): ...\ndef other(x): ...\n",
        "package.optional": "optional = 5\n",
        "package.lazy": "late = 1\nprint('an effect')\n",
    }
    modules = {name: parse(name, source) for name, source in sources.items()}
    monkeypatch.setattr(code_closure, "_module", modules.get)
    code = Code(("package.main:start",), without=("left",), packages=("package",))
    texts = "\n".join(code.statements().values())
    for there in ("def start", "class Shown", "one, two", "helper = {}", "@helper.register", "three = 3", "four = 4",
                  "def kept", "attribute = 1", "def used", "def part", "late = 1", "an effect", "optional = 5",
                  "optional = None"):  # fmt: skip
        assert there in texts, there
    for absent in ("def left", "unread", "unused = 1", "def other"):
        assert absent not in texts, absent
    stopped = Code(("package.main:start",), ("package.third", "package.main:helper"), packages=("package",))
    texts = "\n".join(stopped.statements().values())
    assert "def used" not in texts and "three = 3" not in texts


def test_a_start_or_stop_that_is_gone_is_an_error() -> None:
    assert named("a.b:c") == Name("a.b", "c")
    for code in (Code(("infid_export.export.parity:gone",)), Code((), ("infid_export.export.gone",))):
        with pytest.raises(ValueError, match="there is no"):
            code.hash()
