"""The networks that the suite measures, created on the device, and the arguments of their steps.

Weights of `random-sdxl` are sampled on the device: sampling 2.6e9 numbers on one CPU core takes a minute. A `Held`
keeps one UNet for all items, since two full-size ones are 10 GB. Each step made from it installs its own attention
processors, so only the step that was made last may be called.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.suite.bench import Bench, Result
from infid_kernels.measure import Timing

if TYPE_CHECKING:
    from infid_export.export.graphs.sizes import Sizes
    from infid_export.model.architectures import Architecture

SAMPLES = 20  # per step: 20 × 50 ms
_STEPS, _STEP = 30, 10  # inputs are those of step 10 of 30: neither noise nor image
# Neither 0 nor 1, so that ignoring an input gives a wrong result.
_GUIDANCE, _STYLE, _IDENTITY = 5.0, 0.75, 0.875
# A UNet of three transformer blocks, for what takes long on a CPU: the demo model's takes the interpreter 3 s per step.
_SMALL_UNET: Mapping[str, Any] = {
    "block_out_channels": [32, 64], "attention_head_dim": [1, 1], "transformer_layers_per_block": [1, 1],
    "layers_per_block": 1, "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


class Network:
    """The workload's model on the bench's device.

    Args:
        bench: device, workload and seed.
        small: in the demo workload, use random weights and the demo model's architecture with a UNet of three
            transformer blocks. Has no effect in another workload.
    """

    def __init__(self, bench: Bench, small: bool = False) -> None:
        from infid_export.model.opening import open_source

        self.bench = bench
        self._source = open_source(bench.workload.model)
        self.architecture: Architecture = self._source.architecture
        self.config = self._source.config
        self.name = bench.workload.model
        self._draws = self.name.startswith("random")
        if small and self.name == "demo":
            self.architecture = replace(self.architecture, unet={**self.architecture.unet, **_SMALL_UNET})
            self.name, self._draws = "random weights, three transformer blocks", True
        self._unets: dict[torch.dtype, nn.Module] = {}
        self._features: dict[tuple[torch.dtype, bool], list[Tensor]] = {}
        self._flops: dict[str, int] = {}

    def dtype(self, ops: str) -> torch.dtype:
        """Return the dtype in which the UNet runs with `torch` or `triton` attention operations.

        The kernels take 16-bit dtypes only, even where the workload's networks are fp32, and Triton's interpreter
        treats the bits of bf16 as integers.
        """
        network = self.bench.workload.network
        return torch.float16 if ops == "triton" and network == torch.float32 else network

    @property
    def best_ops(self) -> str:
        """The attention operations for items with many steps: `triton`, or `torch` where Triton is interpreted."""
        return "triton" if self.bench.on_gpu else "torch"

    def component(self, name: str, dtype: torch.dtype) -> nn.Module:
        """Return a component on the device, in channels_last layout on a GPU, in evaluation mode."""
        from infid_export.model.components import build_component, cast_module

        if self._draws:
            module = build_component(name, self.architecture, self.config)
            generator = torch.Generator(self.bench.device).manual_seed(0)
            weights = {key: _drawn(key, each, generator).to(dtype) for key, each in module.named_parameters()}
            module.load_state_dict(weights, strict=False, assign=True)
        else:
            module = self._source.load(name, dtype)
        module = cast_module(module, dtype, self.bench.device).eval().requires_grad_(False)
        return nn.Module.to(module, memory_format=torch.channels_last) if self.bench.on_gpu else module

    def unet(self, dtype: torch.dtype) -> Any:
        """Return the UNet, which is created once per dtype."""
        if dtype not in self._unets:
            self._unets[dtype] = self.component("unet", dtype)
        return self._unets[dtype]

    def step(self, graph: str, ops: str) -> nn.Module:
        """Return a step's module; its attention processors replace those of the step that was made before."""
        from infid_export.export.graphs import GRAPHS

        return GRAPHS[graph].module({"unet": self.unet(self.dtype(ops))}, self.config, ops)

    def arguments(self, graph: str, dtype: torch.dtype, guidance: bool = True) -> dict[str, Any]:
        """Return a step's arguments on the device, in the order of its signature, the same ones every time.

        The latents, embeddings, keys and values are normally distributed; text features are those that the text step
        returns for the same arguments.
        """
        from infid_export.export.graphs import GRAPHS

        shapes = GRAPHS[graph].arguments(self._sizes(self.unet(dtype), guidance), dtype)
        found: dict[str, Any] = {
            name: self._argument(name, each) for name, each in shapes.items() if type(each) is Tensor
        }
        if graph == "identity_step":
            found["text_features"] = [each.clone() for each in self._text_features(dtype, guidance)]
        return found

    def _argument(self, name: str, shape: Tensor) -> Tensor:
        from infid_export.export.graphs.step_parts import COEFFICIENTS
        from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
        from infid_export.sampling.samplers import sampler_table

        size = self.bench.workload.size
        known: Mapping[str, Any] = {
            "timestep": [float(sampler_table(SDXL_SCHEDULER, _STEPS).timesteps[_STEP])], "coefficients": COEFFICIENTS,
            "guidance": _GUIDANCE, "style_strength": _STYLE, "identity_strength": _IDENTITY,
            "time_ids": [size, size, 0, 0, size, size],
        }  # fmt: skip
        if name in known:
            values = torch.tensor(known[name], dtype=shape.dtype, device=self.bench.device)
            return values.expand(shape.shape).clone()
        # each name has its own seed, so that two graphs get the same values for it
        generator = torch.Generator(self.bench.device).manual_seed(self.bench.seed + sum(name.encode()))
        return torch.randn(shape.shape, device=self.bench.device, generator=generator).to(shape.dtype)

    def _text_features(self, dtype: torch.dtype, guidance: bool) -> list[Tensor]:
        from infid_export.export.graphs.text_step import TEXT_STEP

        if (dtype, guidance) not in self._features:
            step = TEXT_STEP.module({"unet": self.unet(dtype)}, self.config)
            _, _, *self._features[dtype, guidance] = step(**self.arguments("text_step", dtype, guidance))
        return self._features[dtype, guidance]

    def flops(self, graph: str) -> int:
        """Return a step's floating-point operations, counted by PyTorch: products, convolutions and attention.

        A multiply-add counts as two; for the identity rows, attention counts twice as many keys.
        """
        if graph not in self._flops:
            self._flops[graph] = self._counted(graph)
        return self._flops[graph]

    def _counted(self, graph: str) -> int:
        from infid_export.export.graphs import GRAPHS
        from infid_export.model.components import build_component

        unet = build_component("unet", self.architecture, self.config)
        shapes = GRAPHS[graph].arguments(self._sizes(unet), torch.float32)
        module = GRAPHS[graph].module({"unet": unet.to("meta")}, self.config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(**shapes)
        return int(counter.get_total_flops())

    def _sizes(self, unet: nn.Module, guidance: bool = True) -> Sizes:
        from infid_export.export.graphs.sizes import Sizes
        from infid_export.model.processors import identity_blocks

        size = self.bench.workload.size
        return Sizes(self.architecture, self.config, identity_blocks(unet), 1, size, size, guidance=guidance)

    def rated(self, timing: Timing, graph: str) -> Result:
        """Return a step's timing with its rate, also as a fraction of the matrix ceiling measured in this run."""
        flops = self.flops(graph)
        rate = flops / (timing.median * 1e-3)
        share = {"of_matrix_ceiling": rate / self.bench.ceilings["flops_per_second"]} if self.bench.ceilings else {}
        return {**asdict(timing), "teraflop": flops / 1e12, "teraflops": rate / 1e12, **share, "network": self.name}


def _drawn(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Sample a parameter as `RandomSource` does: unit norms, zero biases, weights that keep activations near 1."""
    found = torch.empty(like.shape, device=generator.device)
    if like.dim() < 2:
        return found.fill_(1.0 if name.endswith("weight") else 0.0)
    return found.normal_(0, 1 / math.sqrt(math.prod(like.shape[1:])), generator=generator)


class Held:
    """What the items share: the networks, until they are freed, and final latents to compare with."""

    def __init__(self) -> None:
        self._networks: dict[bool, Network] = {}
        self.latents: dict[str, Tensor] = {}
        self.compiled: dict[str, Result] = {}

    def network(self, bench: Bench, small: bool = False) -> Network:
        """Return the network, which the first item that needs it creates; arguments as for `Network`."""
        small = small and bench.workload.model == "demo"
        if small not in self._networks:
            self._networks[small] = Network(bench, small)
        return self._networks[small]

    def give_up(self) -> None:
        """Free the networks' memory."""
        self._networks.clear()


Measure = Callable[[Held, Bench], Result]


def alone(measure: Callable[..., Result]) -> Callable[..., Result]:
    """Run an item's function without gradients, after freeing unused memory, and add its peak memory."""

    @wraps(measure)
    def run(held: Held, bench: Bench, **arguments: Any) -> Result:
        gc.collect()
        if bench.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(bench.device)
        with torch.no_grad():
            result = measure(held, bench, **arguments)
        return result | peak(bench)

    return run


def peak(bench: Bench) -> Result:
    """Return the peak memory allocated on a GPU since the item began."""
    return {"peak_bytes": torch.cuda.max_memory_allocated(bench.device)} if bench.on_gpu else {}


def latents_of(outputs: Any) -> list[Tensor]:
    """Return a step's outputs without the text features."""
    return [each for each in ([outputs] if isinstance(outputs, Tensor) else outputs) if each.dim() == 4]


def compared(errors: Sequence[float], dtype: torch.dtype) -> Result:
    """Return the largest RMS error of a step's outputs, and whether all are within the limit of a graph's dtype."""
    from infid_export.export.tolerances import tolerance

    limit = tolerance("fp32" if dtype == torch.float32 else "fp16").rms
    return {"relative_rms": max(errors), "limit": limit, "passed": all(error <= limit for error in errors)}
