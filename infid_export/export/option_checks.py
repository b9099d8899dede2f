"""Options of a build that contradict each other or the model, each rejected before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from infid_engines.errors import InputError
from infid_engines.registry import BACKENDS, get_backend
from infid_export.export.build_options import BuildOptions
from infid_export.export.graphs import GRAPHS
from infid_export.model.sources import BUILT_IN, RANDOM, ModelSource
from infid_export.runtime.requirements import image_graphs


def check_ranges(options: BuildOptions) -> None:
    """Reject a size together with a range for the same dimension, and a range for a backend that takes none."""
    ranges = [name for name in ("height", "width", "batch") if getattr(options, f"{name}_range")]
    fixed = [name for name in options.backends if name in BACKENDS and BACKENDS[name].builds_from_modules]
    if ranges and fixed:
        raise InputError(
            f"--{ranges[0]}-range was given, but engines of {fixed[0]} have one size.",
            fix=f"Leave out --{ranges[0]}-range or --backend {fixed[0]}.",
        )
    for name, single in (("height", options.height), ("width", options.width)):
        if getattr(options, f"{name}_range") and single is not None:
            raise InputError(f"--{name} and --{name}-range were both given.", fix=f"Leave --{name} out.")


def check_fused(options: BuildOptions, source: ModelSource) -> None:
    """Reject what the fused kernels do not support, before anything is built."""
    if source.config.streams == "one":
        raise InputError(
            "The Triton kernels merge two streams, but this model has one.",
            fix="Use --kernels native, or add --streams two.",
        )
    if not source.config.fits_kernels:
        raise InputError(
            "The Triton kernels support only the method itself: mixed (or plain) self-attention with AdaIN-mean on "
            "keys and values, and cross-attention merged by a sum.",
            fix="Use --kernels native for the ablations.",
        )
    able = [graph.name for graph in GRAPHS.values() if options.kernels in graph.kernels]
    if not set(able) & set(options.graphs):
        raise InputError(
            f"--kernels triton applies to {' and '.join(able)}, but neither is built.", fix="Leave it out."
        )


def check_effects(options: BuildOptions, source: ModelSource, backends: Sequence[str]) -> None:
    """Reject options that would have no effect."""
    built_in = source.name in BUILT_IN
    takes_flags = any(get_backend(name).takes_flags for name in backends)
    with_templates = any("templates" in GRAPHS[name].depends_on for name in options.graphs)
    needed = set(image_graphs(source.config.streams))
    unflagged = f"no engine of {backends_with('takes_flags')} is built"
    for given, what, why in (
        (options.identity and source.name in RANDOM, "--identity", f"the model {source.name} has its own"),
        (options.image_encoder and built_in, "--image-encoder", f"the model {source.name} has its own"),
        (options.image_encoder and not source.config.reads_image, "--image-encoder",
         f"{source.config.family} weights read no image"),
        (options.recognizer and not source.config.reads_face, "--recognizer",
         f"{source.config.family} weights read no face embedding"),
        (options.face_models and not source.config.finds_faces, "--face-models",
         f"{source.config.family} weights read whole images"),
        (options.prediction and built_in, "--prediction", f"the model {source.name} predicts epsilon"),
        (options.zero_snr and built_in, "--zero-snr", f"the model {source.name} predicts epsilon"),
        (options.face_models and options.detector != "insightface", "--face-models",
         f"the detector is {options.detector}"),
        (options.refit and not takes_flags, "--refit", unflagged),
        (options.strip and not takes_flags, "--strip", unflagged),
        (options.quantize_templates and not with_templates, "--quantize-templates", "no graph for templates is built"),
        (options.optimization_level is not None and not takes_flags, "--optimization-level", unflagged),
        (options.parity_image == "on" and not needed <= set(options.graphs), "--parity-image on",
         f"an image needs the graphs {', '.join(sorted(needed))}"),
    ):  # fmt: skip
        if given:
            raise InputError(
                f"{what} would have no effect: {why}.", fix=f"Leave out {what}, or change the other option."
            )


def backends_with(attribute: str) -> str:
    """Return the backends with a true attribute, for a message."""
    return " or ".join(name for name, backend in BACKENDS.items() if getattr(backend, attribute))
