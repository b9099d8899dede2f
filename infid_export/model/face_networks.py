"""The demo model's face networks: a recognizer with ArcFace's interface and a detector with CenterFace's.

They only know the drawn people of the demo's world. Exported to ONNX, they replace the models that a user provides for
photos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def _convolution(before: int, after: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.SiLU(),
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.inner(x)
        return added


class RecognizerNetwork(nn.Module):
    """Embeds an aligned face (ArcFace's interface, Deng et al., arXiv 1801.07698).

    Args:
        widths: channels after each of four halvings of 112 pixels.
        width: length of the embedding.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128), width: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [_convolution(before, after, stride=2), _Residual(after)]
        self.body = nn.Sequential(*layers)
        # one weight per channel and position, like MobileFaceNet: eyes and mouth are always at the same position
        self.places = nn.Conv2d(widths[-1], widths[-1], 7, groups=widths[-1], bias=False)
        self.head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], width, bias=False))

    def forward(self, face: Tensor) -> Tensor:
        """Return `[B, width]` embeddings of `[B, 3, 112, 112]` RGB in [−1, 1]; their norm has no meaning."""
        embedding: Tensor = self.head(self.places(self.body(face)))
        return embedding


class DetectorNetwork(nn.Module):
    """Detects faces, with CenterFace's maps of one cell per 4 × 4 pixels (Xu et al., arXiv 1911.03599)."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 48, 64, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(before, after, stride=2), _Residual(after))
            for before, after in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            _convolution(deep + shallow, shallow) for deep, shallow in zip(widths[:1:-1], widths[-2:0:-1], strict=True)
        )
        self.head = nn.Sequential(_convolution(widths[1], widths[1]), nn.Conv2d(widths[1], 15, 1))

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find faces.

        Args:
            photo: `[B, 3, H, W]` RGB from 0 to 255; both sides are multiples of 32.

        Returns:
            Score `[B, 1, h, w]`; logarithm of height and width in cells `[B, 2, h, w]`; offset of the center in cells,
            y and x, `[B, 2, h, w]`; landmarks, y and x relative to the box, `[B, 10, h, w]`.
        """
        maps = self.maps(photo)
        return maps[:, :1].sigmoid(), maps[:, 1:3], maps[:, 3:5], maps[:, 5:]

    def maps(self, photo: Tensor) -> Tensor:
        """Return all maps, concatenated to `[B, 15, h, w]`, with the logit of the score."""
        x, levels = photo / 127.5 - 1, []
        for layer in self.down:
            x = layer(x)
            levels.append(x)
        for layer, shallow in zip(self.up, levels[-2:0:-1], strict=True):
            x = layer(torch.cat([interpolate(x, scale_factor=2.0), shallow], 1))
        maps: Tensor = self.head(x)
        return maps


# The generator's recognizer, the scorer's, and the detector for both.
FACE_NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "recognizer": RecognizerNetwork,
    "facenet": partial(RecognizerNetwork, (16, 40, 72, 112)),
    "detector": DetectorNetwork,
}
