"""Imports an adapter: the identity weights of another method, as its authors publish them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infid_engines.errors import InputError
from infid_engines.progress import Reporter, SilentReporter
from infid_export.importing.conversion import Copied, check_base, planned, write
from infid_export.importing.families import Recognized, configuration, recognize
from infid_export.importing.licenses import LICENSES
from infid_export.importing.projection import Projection
from infid_export.importing.target import known_encoders, open_target
from infid_export.importing.unsupported import PROJECTION, reject_unsupported
from infid_export.importing.weights_file import WeightsFile, open_weights
from infid_export.model.config import IdentityConfig
from infid_export.model.encoder_record import ENCODERS_KEY, EncoderRecord
from infid_export.model.identity_header import LICENSE_KEY, LORA

_READ, _WRITE = "read", "write"


@dataclass(frozen=True)
class Imported:
    """What was imported, or would be.

    Args:
        found: the family, and why.
        config: configuration in the identity file.
        license: what its publishers say about its license.
        tensors: the identity file's tensors.
    """

    found: Recognized
    config: IdentityConfig
    license: str
    tensors: tuple[Copied, ...]

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the identity file says besides: the license, and the names of the encoders."""
        image_encoder = self.config.image_encoder if self.config.reads_image else ""
        encoders = EncoderRecord(recognizer_name=self.found.family.recognizer, image_encoder_name=image_encoder)
        return {LICENSE_KEY: self.license, ENCODERS_KEY: encoders.to_json()}

    @property
    def bytes(self) -> Mapping[str, int]:
        """Bytes of the parts: mapper, image keys and values, LoRA."""
        sizes = {"mapper": 0, "image keys and values": 0, "LoRA": 0}
        for each in self.tensors:
            part = "mapper" if each.name.startswith("mapper.") else "image keys and values"
            sizes["LoRA" if each.name.startswith(LORA) else part] += each.facts.size
        return sizes


def import_adapter(
    path: Path,
    output: Path,
    *,
    family: str | None = None,
    model: str = "random-sdxl",
    image_encoder: str | None = None,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Imported:
    """Convert an adapter's file to an identity file.

    Args:
        path: the file: safetensors, or pickled by torch.save, which a child process reads.
        output: identity file to write.
        family: a key of `FAMILIES`; None recognizes it.
        model: base model that the adapter is for; only its architecture matters.
        image_encoder: open_clip's name of the image encoder that it reads; None chooses it by its width.
        dry_run: whether to recognize and check only.
        reporter: receives the progress.

    Raises:
        InputError: the file is missing, damaged, of another kind or for another base model, contains code, or is not
            finite; or the output is the same file, an option has no effect, or there is too little memory.
        DiskFullError: the disk is full.
    """
    if output.exists() and path.exists() and output.samefile(path):
        raise InputError(f"{output} is the adapter's own file, which would be replaced.", fix="Give another with -o.")
    report = reporter or SilentReporter()
    report.plan({_READ: 5.0} if dry_run else {_READ: 5.0, _WRITE: 10.0})
    with ExitStack() as stack:
        with report.stage(_READ):
            weights = stack.enter_context(open_weights(path, output))
            reject_unsupported(path, weights.tensors.keys(), weights.metadata)
            imported = _checked(weights, family, model, image_encoder)
        if not dry_run:
            with report.stage(_WRITE) as stage:
                write(weights, imported.tensors, imported.config, imported.metadata, output, stage)
    return imported


def _checked(weights: WeightsFile, family: str | None, model: str, image_encoder: str | None) -> Imported:
    target, own_encoder = open_target(model)
    check_base(weights.path, weights.tensors, target)
    tensors = {
        name.removeprefix(PROJECTION): facts for name, facts in weights.tensors.items() if name.startswith(PROJECTION)
    }
    projection = Projection(weights.path, tensors, known_encoders(own_encoder, image_encoder))
    found = recognize(projection, family)
    config = configuration(found, projection)
    if image_encoder is not None and not config.reads_image:
        raise InputError(
            f"--image-encoder-name would have no effect: {found.family.title} reads no image.", fix="Leave it out."
        )
    copied = planned(weights.path, weights.tensors, config, target, found.family.lora)
    return Imported(found, config, LICENSES[found.name], tuple(copied))
