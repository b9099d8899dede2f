"""The encoders that identity weights belong to, as stored in an identity file's header.

The mappers are trained on one recognizer's embeddings and one image encoder's features. Those of other encoders have
the same shapes but other meanings, so every image would show somebody else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.model.identity_header import open_header

ENCODERS_KEY = "infid_encoders"  # key in an identity file's header
TAG = "tag "  # prefix for open_clip's named weights, which have no file to hash


@dataclass(frozen=True)
class EncoderRecord:
    """Recognizer, image encoder and detector; empty fields are unknown. Imported weights have names only.

    Args:
        recognizer: sha256 of the recognizer's file.
        recognizer_name: its name, for messages.
        image_encoder: sha256 of the image encoder's weights, or their open_clip `tag`.
        image_encoder_name: its name, for messages.
        detector: `centerface`, `drawn` or `insightface`.
    """

    recognizer: str = ""
    recognizer_name: str = ""
    image_encoder: str = ""
    image_encoder_name: str = ""
    detector: str = ""

    def to_json(self) -> str:
        """Return the text for an identity file's header."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EncoderRecord:
        """Read the text from an identity file's header.

        Raises:
            InputError: the text is not a record.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
                raise TypeError("not an object of strings")
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"The identity file's record of its encoders cannot be read ({error}).",
                fix="Update infid-export, or export the identity weights again.",
            ) from error

    @classmethod
    def read(cls, path: Path) -> EncoderRecord | None:
        """Return the record of an identity file; None if it has none, like older files.

        Raises:
            InputError: the file or its record cannot be read.
        """
        with open_header(path) as file:
            text = (file.metadata() or {}).get(ENCODERS_KEY)
        return None if text is None else cls.from_json(text)
