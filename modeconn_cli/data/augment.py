"""Random crop, horizontal flip and cutout of a whole batch at once, from draws made ahead of time.

The draws of an epoch are made on the CPU before it starts, so training that stops and resumes in mid-epoch
sees the same images, on any device and in batches of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AugmentDraw:
    """What was drawn for n examples; ``draw[start:stop]`` is one batch's part."""

    offsets: Tensor  # (n, 2) int64: first row and column of the crop inside the padded image
    flips: Tensor  # (n,) bool
    cuts: Tensor  # (n, 2): where the square that is cut out begins, as fractions of the places that it may begin at

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, index: slice | Tensor) -> AugmentDraw:
        return AugmentDraw(self.offsets[index], self.flips[index], self.cuts[index])

    def to(self, device: torch.device | str) -> AugmentDraw:
        return AugmentDraw(self.offsets.to(device), self.flips.to(device), self.cuts.to(device))


@dataclass(frozen=True)
class Augment:
    """Crop out of an image zero-padded by ``crop_padding`` pixels a side, then flip with probability 1/2.

    Then, once normalised, a square of ``cutout`` pixels a side is set to the mean (DeVries and Taylor 2017,
    arXiv:1708.04552). It lies inside the image, as in Jordan et al. 2022's recipe; the authors' own may cross the edge.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    @property
    def active(self) -> bool:
        return self.crop_padding > 0 or self.flip or self.cutout > 0

    def draw(self, n: int, generator: torch.Generator) -> AugmentDraw:
        """Draw for ``n`` examples from a CPU generator; what is off draws nothing from it."""
        offsets = torch.zeros(n, 2, dtype=torch.int64)
        flips = torch.zeros(n, dtype=torch.bool)
        if self.crop_padding:
            offsets = torch.randint(0, 2 * self.crop_padding + 1, (n, 2), generator=generator)
        if self.flip:
            flips = torch.randint(0, 2, (n,), generator=generator).bool()
        cuts = torch.rand(n, 2, generator=generator) if self.cutout else torch.zeros(n, 2)
        return AugmentDraw(offsets, flips, cuts)

    def apply(self, x_nchw: Tensor, draw: AugmentDraw) -> Tensor:
        """The batch cropped and flipped, of the same shape, dtype and device.

        Raises ValueError when ``draw`` is not for as many examples as the batch holds.
        """
        if len(draw) != len(x_nchw):
            raise ValueError(f"a draw for {len(draw)} examples cannot augment a batch of {len(x_nchw)}")
        if not (self.crop_padding or self.flip):
            return x_nchw
        n, channels, height, width = x_nchw.shape
        device = x_nchw.device
        padded = F.pad(x_nchw, (self.crop_padding,) * 4) if self.crop_padding else x_nchw
        column = torch.arange(width, device=device)
        rows_nh = draw.offsets[:, :1] + torch.arange(height, device=device)
        columns_nw = draw.offsets[:, 1:] + torch.where(draw.flips[:, None], column.flip(0), column)
        # Crop and flip are one gather over flattened pixels: half the time of indexing an unfolded view.
        pixel_nhw = rows_nh[:, :, None] * padded.shape[3] + columns_nw[:, None, :]
        index = pixel_nhw.view(n, 1, height * width).expand(n, channels, height * width)
        return padded.reshape(n, channels, -1).gather(2, index).view(n, channels, height, width)

    def cut(self, x_nchw: Tensor, draw: AugmentDraw) -> Tensor:
        """A normalised batch with every image's square set to 0, which is the mean."""
        if not self.cutout:
            return x_nchw
        inside = []
        for side, cuts in zip(x_nchw.shape[2:], draw.cuts.T, strict=True):
            places = side - self.cutout + 1
            first = (cuts * places).long().clamp(max=places - 1)[:, None]  # for a product that rounds up
            place = torch.arange(side, device=x_nchw.device)
            inside.append((place >= first) & (place < first + self.cutout))
        rows_nh, columns_nw = inside
        return x_nchw.masked_fill((rows_nh[:, :, None] & columns_nw[:, None, :])[:, None], 0.0)
