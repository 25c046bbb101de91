"""A small vision transformer: Dosovitskiy et al. 2021 (arXiv:2010.11929), eq. 1 to 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import require_images

EPS = 1e-6  # of the LayerNorms, as in the authors' code
INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention (N, tokens, dim) -> (N, tokens, dim).

    The query, key, value and output maps are separate layers, so that each can be read and permuted by name;
    head h owns the rows from h * dim / heads of the first three, and the columns from there of the last.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then an MLP, each on the normalised stream and added back to it."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attention = Attention(dim, heads)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes), read off a class token after a last LayerNorm."""

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        classes: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        tokens = 1 + (height // patch) * (width // patch)
        hidden = max(1, round(dim * mlp_ratio))
        self.patches = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, tokens, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, classes)
        self._initialise()

    def _initialise(self) -> None:
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.blocks(self.dropout(x + self.positions))
        return self.head(self.norm(x[:, 0]))


def build(
    in_shape: tuple[int, ...],
    classes: int,
    *,
    patch: int = 4,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
) -> ViT:
    """A :class:`ViT`.

    Raises:
        UserError: the data are vectors, ``patch`` does not divide the image or ``heads`` not ``dim``.
    """
    channels, height, width = require_images("vit", in_shape)
    if height % patch or width % patch:
        whole = -(-max(height, width) // patch) * patch
        raise UserError(
            f"vit cannot cut this data set's {height}x{width} images into {patch}x{patch} patches: set "
            f"architecture.patch to a divisor of both sides or dataset.pad_to={whole}"
        )
    if dim % heads:
        raise UserError(
            f"vit cannot share dim {dim} among {heads} heads: set architecture.dim to a multiple of heads, "
            f"such as {-(-dim // heads) * heads}"
        )
    return ViT((channels, height, width), classes, patch, dim, depth, heads, mlp_ratio, dropout)
