"""What the publishers of the weights say about their license, one line per family.

Only what was read in their repositories and model cards is here. The line goes with the weights: it is stored in the
identity file and in the manifest of every engine folder made with it.
"""

from __future__ import annotations

from collections.abc import Mapping

_IP_ADAPTER = "IP-Adapter: its code is Apache-2.0; for the weights, see the model card where they were published"
_FACEID = (
    "IP-Adapter-FaceID: research purposes only, since InsightFace's models, which it was trained with, are available "
    "for non-commercial research only"
)

LICENSES: Mapping[str, str] = {
    "ip-adapter": _IP_ADAPTER,
    "ip-adapter-plus": _IP_ADAPTER,
    "ip-adapter-plus-face": _IP_ADAPTER,
    "faceid": _FACEID,
    "faceid-plusv2": _FACEID,
    "instantid": "InstantID: Apache-2.0; InsightFace's models, whose embeddings it reads, are available for "
    "non-commercial research only",
}
