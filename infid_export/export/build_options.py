"""What a user can ask of a build. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infid_engines.errors import InputError
from infid_engines.validation import settle_fields
from infid_export.export.graphs import DEFAULT, GRAPHS

Range = tuple[int, int, int]


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides what an engine folder holds.

    Args:
        output: the engine folder.
        model: `demo`, `random-sdxl`, a folder in diffusers' format, or a hub id.
        identity: identity weights (safetensors); built-in models have their own.
        image_encoder: OpenCLIP checkpoint for the `ViT-H-14` image encoder: a file, or a tag open_clip knows.
        recognizer: ArcFace-type ONNX file, `[N, 3, 112, 112]` to `[N, 512]`.
        detector: which face detector the folder uses: `centerface` or `insightface` for photos, `drawn` for the people
            of the demo model; None is what fits the model.
        face_models: local InsightFace model folder, for `detector="insightface"`.
        allow_other_encoders: build although the identity weights record that they were trained with others.
        precision: type of the networks; latents and sampling arithmetic are fp32 in both.
        height: image height in pixels; None is the model's own. Likewise `width`.
        batch: images per call.
        people: people (token slots) that one image can hold.
        height_range: smallest, usual and largest height of dynamic engines; likewise for width and batch.
        backends: `auto`, or names of backends to build engines for.
        targets: GPU architectures such as `sm_89`, for the backends that need one.
        graphs: the graphs to export; `default`, and none at all, stand for those that are built by default.
        self_attention: method variant; None is the identity file's own. Likewise `adain`, `cross_adain`,
            `uncond_identity`.
        parity_size: height and width at which parity is measured; None is the size of the engines.
        parity_image: whether a whole image is compared: `auto` does it for the demo model.
        seed: of `random-sdxl`'s weights.
        refit: build TensorRT engines whose weights can be replaced.
        strip: leave the weights out of TensorRT engines.
        optimization_level: TensorRT's builder optimization level (0 to 5); None is its default.
        kernels: what attends inside TensorRT engines: its `native` operators, or the `triton` kernels as plugins.
        tuning: a file that `infid-export tune` wrote, whose choices the `triton` kernels take before the table's.
    """

    output: Path = Path("infid-engines")
    model: str = "demo"
    identity: Path | None = None
    image_encoder: str | None = None
    recognizer: Path | None = None
    detector: Literal["centerface", "drawn", "insightface"] | None = None
    face_models: Path | None = None
    allow_other_encoders: bool = False
    precision: Literal["fp16", "fp32"] = "fp32"
    height: int | None = None
    width: int | None = None
    batch: int = 1
    people: int = 1
    height_range: Range | None = None
    width_range: Range | None = None
    batch_range: Range | None = None
    backends: tuple[str, ...] = ("auto",)
    targets: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    self_attention: str | None = None
    adain: str | None = None
    cross_adain: str | None = None
    uncond_identity: str | None = None
    parity_size: int | None = None
    parity_image: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    refit: bool = False
    strip: bool = False
    optimization_level: int | None = None
    kernels: Literal["native", "triton"] = "native"
    tuning: Path | None = None

    def __post_init__(self) -> None:
        """Reject impossible values, each with a sentence that says what is possible."""
        settle_fields(self)
        for name in ("height", "width", "parity_size"):
            value = getattr(self, name)
            if value is not None and (value < 64 or value % 32):
                raise InputError(
                    f"{name} must be a multiple of 32 from 64 up, not {value}.",
                    fix=f"Use {max(64, round(value / 32) * 32)}.",
                )
        for name in ("batch", "people"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.", fix="Use 1 or more.")
        for name in ("height_range", "width_range", "batch_range"):
            bounds: Range | None = getattr(self, name)
            if bounds is None:
                continue
            if not 1 <= bounds[0] <= bounds[1] <= bounds[2]:
                raise InputError(
                    f"{name} must be three growing numbers (smallest, usual, largest), not {list(bounds)}.",
                    fix="For example: 768 1024 1280.",
                )
            if name != "batch_range" and (bounds[0] < 64 or any(bound % 32 for bound in bounds)):
                raise InputError(
                    f"{name} must hold multiples of 32 from 64 up, not {list(bounds)}.",
                    fix="For example: 768 1024 1280.",
                )
        unknown = set(self.graphs) - {DEFAULT, *GRAPHS}
        if unknown:
            raise InputError(
                f"There is no graph named {', '.join(sorted(unknown))}.",
                fix=f"Choose from {', '.join((DEFAULT, *GRAPHS))}.",
            )
        if self.kernels == "triton" and self.precision != "fp16":
            raise InputError("The Triton kernels compute in fp16.", fix="Add --fp16, or use --kernels native.")
        if self.tuning is not None and self.kernels != "triton":
            raise InputError(
                "--tuning concerns the Triton kernels alone.", fix="Add --kernels triton, or leave it out."
            )
        if self.detector == "insightface" and self.face_models is None:
            raise InputError(
                "The insightface detector needs your local InsightFace model folder.",
                fix="Give it with --face-models, or use --detector centerface.",
            )

    def extents(self, end: Literal["smallest", "usual", "largest"] = "usual") -> tuple[int, int, int]:
        """Return batch, height and width at one end of their ranges, or the usual ones; sizes are settled by then."""
        index = ("smallest", "usual", "largest").index(end)
        assert self.height is not None and self.width is not None
        return (
            self.batch_range[index] if self.batch_range else self.batch,
            self.height_range[index] if self.height_range else self.height,
            self.width_range[index] if self.width_range else self.width,
        )
