"""The model of a build: a source, and everything that the options change about it. Imports are light."""

from __future__ import annotations

from infid_export.export.build_options import BuildOptions
from infid_export.export.preset_plan import with_preset
from infid_export.model.changes.given_networks import with_networks
from infid_export.model.changes.lora_file import with_loras
from infid_export.model.checkpoints.prediction import GivenPrediction
from infid_export.model.config import METHOD_FIELDS
from infid_export.model.opening import open_source
from infid_export.model.sources import ModelSource


def source_of(options: BuildOptions) -> ModelSource:
    """Return the model of a build.

    Raises:
        InputError: it cannot be used.
    """
    given = {"vae": options.vae, "unet": options.unet}
    choices = {name: getattr(options, name) for name in METHOD_FIELDS}
    source = open_source(
        options.model,
        identity=options.identity,
        image_encoder=options.image_encoder,
        seed=options.seed,
        choices=choices,
        prediction=GivenPrediction(options.prediction, options.zero_snr),
        without=[name for name, path in given.items() if path is not None],
    )
    source = with_networks(source, options.vae, options.unet)
    return with_preset(with_loras(source, options.lora), options.preset)
