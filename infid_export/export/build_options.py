"""The options of a build. Imports are light, since the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infid_engines.errors import InputError
from infid_engines.validation import settle_fields, shown
from infid_export.export.graphs import DEFAULT, GRAPHS
from infid_export.sampling.presets import PRESETS

Range = tuple[int, int, int]


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides the contents of an engine folder.

    Args:
        output: the engine folder.
        model: `demo`, `random-sdxl`, `random-medium`, a safetensors file in SDXL's original layout, a folder in
            diffusers' format, or a hub id.
        identity: identity weights (safetensors); built-in models have their own.
        image_encoder: checkpoint of the image encoder that the identity weights read: a file or folder in OpenCLIP's or
            transformers' layout, or an open_clip tag.
        recognizer: ArcFace-type ONNX file, `[N, 3, 112, 112]` to `[N, 512]`.
        detector: the folder's face detector: `centerface` or `insightface` for photos, `drawn` for the people of the
            demo model; None chooses by the model.
        face_models: your InsightFace model folder, for `detector="insightface"`.
        allow_other_encoders: accept identity weights that were trained with other encoders.
        precision: precision of the networks; latents and sampling are always fp32.
        height: image height in pixels; None is the model's default. Likewise `width`.
        batch: images per call.
        people: people (token slots) per image.
        guidance: whether steps have unconditional rows too, for classifier-free guidance; half the work without.
        quantize_templates: whether templates keep their features in 8 bits: half the size of fp16.
        height_range: smallest, usual and largest height of dynamic engines; likewise for width and batch.
        backends: `auto`, or names of backends to build engines for.
        targets: GPU architectures such as `sm_89`, for the backends that need one.
        graphs: the graphs to export; `default` and an empty tuple stand for the default graphs.
        self_attention: method variant; None is the identity file's. Likewise `adain`, `cross_adain`,
            `cross_merge`, `uncond_identity`, `zero_tokens`.
        parity_size: height and width of the parity check; None is the size of the engines.
        parity_image: whether a whole image is compared: `auto` does it for the demo model.
        seed: seed of random weights.
        refit: build TensorRT engines with replaceable weights.
        strip: build TensorRT engines without weights.
        optimization_level: TensorRT's builder optimization level (0 to 5); None is its default.
        kernels: attention in TensorRT engines: `native` operators, or the `triton` kernels as plugins.
        tuning: a file from `infid-export tune`; the `triton` kernels prefer its choices to the built-in table.
        streams: `two` or `one`; None is what the identity weights are trained for.
        lora: LoRAs to merge into the weights, each a safetensors `FILE` (strength 1) or `FILE:STRENGTH`.
        preset: a few-step model's sampler, spacing, steps and guidance as the folder's defaults; a key of `PRESETS`.
        vae: a VAE in place of the model's: a safetensors file, or a folder in diffusers' format.
        unet: a UNet in place of the model's (safetensors).
        prediction: what the checkpoint's UNet predicts; None is what the checkpoint says.
        zero_snr: whether it was trained with zero terminal SNR, also if the checkpoint does not say so.
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
    guidance: bool = True
    quantize_templates: bool = False
    height_range: Range | None = None
    width_range: Range | None = None
    batch_range: Range | None = None
    backends: tuple[str, ...] = ("auto",)
    targets: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    self_attention: str | None = None
    adain: str | None = None
    cross_adain: str | None = None
    cross_merge: str | None = None
    uncond_identity: str | None = None
    zero_tokens: int | None = None
    parity_size: int | None = None
    parity_image: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    refit: bool = False
    strip: bool = False
    optimization_level: int | None = None
    kernels: Literal["native", "triton"] = "native"
    tuning: Path | None = None
    streams: Literal["one", "two"] | None = None
    lora: tuple[str, ...] = ()
    preset: str | None = None
    vae: Path | None = None
    unet: Path | None = None
    prediction: Literal["epsilon", "v"] | None = None
    zero_snr: bool = False

    def __post_init__(self) -> None:
        """Reject impossible values with a sentence that says what is possible."""
        settle_fields(self)
        for name in ("height", "width", "parity_size"):
            value = getattr(self, name)
            if value is not None and (value < 64 or value % 32):
                raise InputError(
                    f"{name} must be a multiple of 32, at least 64, not {value}.",
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
                    f"{name} must be three increasing numbers (smallest, usual, largest), not {list(bounds)}.",
                    fix="For example: 768 1024 1280.",
                )
            if name != "batch_range" and (bounds[0] < 64 or any(bound % 32 for bound in bounds)):
                raise InputError(
                    f"{name} must contain multiples of 32, at least 64, not {list(bounds)}.",
                    fix="For example: 768 1024 1280.",
                )
        unknown = set(self.graphs) - {DEFAULT, *GRAPHS}
        if unknown:
            raise InputError(
                f"There is no graph named {', '.join(sorted(unknown))}.",
                fix=f"Choose from {', '.join((DEFAULT, *GRAPHS))}.",
            )
        self._check_preset()
        if self.kernels == "triton" and self.precision != "fp16":
            raise InputError("The Triton kernels compute in fp16.", fix="Add --fp16, or use --kernels native.")
        if self.tuning is not None and self.kernels != "triton":
            raise InputError(
                "--tuning applies only to the Triton kernels.", fix="Add --kernels triton, or leave it out."
            )
        if self.detector == "insightface" and self.face_models is None:
            raise InputError(
                "The insightface detector needs your InsightFace model folder.",
                fix="Give it with --face-models, or use --detector centerface.",
            )

    def _check_preset(self) -> None:
        if self.preset is None:
            return
        if self.preset not in PRESETS:
            raise InputError(f"There is no preset {shown(self.preset)}.", fix=f"Use one of {', '.join(PRESETS)}.")
        chosen = PRESETS[self.preset]
        if chosen.guided and not self.guidance:
            raise InputError(
                f"The preset {self.preset} has a guidance of {chosen.guidance:g}, which steps without unconditional "
                "rows cannot apply.",
                fix="Leave out --no-guidance, or use another preset.",
            )
        if chosen.prediction and (self.prediction or self.zero_snr):
            raise InputError(
                f"The preset {self.preset} is for a model that predicts the data, but --prediction or --zero-snr was "
                "given.",
                fix="Leave it out, or use another preset.",
            )

    def extents(self, end: Literal["smallest", "usual", "largest"] = "usual") -> tuple[int, int, int]:
        """Return batch, height and width: the usual ones, or one end of their ranges. Needs settled sizes."""
        index = ("smallest", "usual", "largest").index(end)
        assert self.height is not None and self.width is not None
        return (
            self.batch_range[index] if self.batch_range else self.batch,
            self.height_range[index] if self.height_range else self.height,
            self.width_range[index] if self.width_range else self.width,
        )
