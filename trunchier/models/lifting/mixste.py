"""MixSTE (Zhang et al., CVPR 2022): joints attend to joints, then each joint to itself over time.

Outputs equal those of the code of HoT (NationalGAILab/HoT, `model/mixste/mixste.py`). There the
head is a part of the network; here it is `LiftingHead`, so that mmpose's PoseLifter takes both.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..backbones.base import drop_path

EPS = 1e-6  # of all norms but that of the head


@MODELS.register_module()
class MixSTE(BaseModule):
    """Pairs of a spatial and a temporal block, with one norm after all spatial blocks, and one
    after all temporal ones.

    `embed`, `run_layer` and `finish` are the steps of `forward`, as `HourglassTokenizer` runs them.

    Args:
        in_channels: of a keypoint: 2 for x and y, 3 with a score.
        width: channels of a token.
        depth: pairs of blocks.
        seq_len: longest window, in frames.
        drop_path_rate: of the last pair; it grows linearly from 0.
    """

    causal = False  # asked by PoseLifter's inferencer: a window is around its target

    def __init__(
        self,
        in_channels: int = 2,
        width: int = 512,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 2,
        num_keypoints: int = 17,
        seq_len: int = 243,
        drop_path_rate: float = 0.1,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.width, self.depth, self.seq_len = width, depth, seq_len
        self.keypoints_shape = num_keypoints, in_channels
        self.build_embedding(in_channels, num_keypoints)
        rates = [drop_path_rate * pair / max(depth - 1, 1) for pair in range(depth)]
        sizes = width, num_heads, int(width * mlp_ratio)
        self.spatial_blocks = nn.ModuleList(Block(*sizes, rate) for rate in rates)
        self.temporal_blocks = nn.ModuleList(Block(*sizes, rate) for rate in rates)
        self.spatial_norm = nn.LayerNorm(width, eps=EPS)
        self.temporal_norm = nn.LayerNorm(width, eps=EPS)

    def build_embedding(self, in_channels: int, num_keypoints: int) -> None:
        """Create the modules that `embed` uses, and the position of frames."""
        self.embedding = nn.Linear(in_channels, self.width)
        self.spatial_position = nn.Parameter(torch.zeros(1, num_keypoints, self.width))
        self.temporal_position = nn.Parameter(torch.zeros(1, self.seq_len, self.width))

    def forward(self, keypoints: Tensor) -> Tensor:
        """Features of windows.

        Args:
            keypoints: (B, T, K, in_channels), x and y normalized by the image's width.

        Returns:
            (B, T, K, width).

        Raises:
            ValueError: other keypoints, or a window that is longer than `seq_len`. In a shorter
                one, the frames have the first positions.
        """
        tokens = self.embed(keypoints)
        for index in range(self.depth):
            tokens = self.run_layer(index, tokens)
        return self.finish(tokens)

    def embed(self, keypoints: Tensor) -> Tensor:
        """(B, T, K, in_channels) -> tokens (B, T, K, width)."""
        check_window(keypoints, self.keypoints_shape, self.seq_len)
        return self.embedding(keypoints) + self.spatial_position

    def run_layer(self, index: int, tokens: Tensor) -> Tensor:
        """Pair `index` of blocks, (B, T, K, width) -> the same."""
        tokens = self.spatial_norm(over_joints(self.spatial_blocks[index], tokens))
        if index == 0 and hasattr(self, 'temporal_position'):
            tokens = tokens + self.temporal_position[:, : tokens.shape[1], None]
        return self.temporal_norm(over_frames(self.temporal_blocks[index], tokens))

    def finish(self, tokens: Tensor) -> Tensor:
        """Tokens after the last layer -> features; here the same, each block has a norm."""
        return tokens

    def temporal_qkv(self, index: int) -> tuple[list[nn.Module], bool]:
        """Layers that give temporal attention q, k and v in `run_layer`, and whether these are
        (B*K, f, 3 width), frames inside, else (B*f, K, 3 width)."""
        return [self.temporal_blocks[index].attn.qkv], True


def check_window(keypoints: Tensor, shape: tuple[int, int], longest: int) -> None:
    """Raise ValueError unless keypoints are (B, T, *shape) with T of 1 to `longest`."""
    found = tuple(keypoints.shape)
    if len(found) != 4 or found[2:] != shape or not 1 <= found[1] <= longest:
        raise ValueError(
            f'keypoints of shape {found}; this lifter takes (B, T, {shape[0]}, {shape[1]}) with T '
            f'of 1 to {longest} frames: reorder keypoints, or cut the video into windows'
        )


def over_joints(block: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a block of sequences (N, L, C) to the joints of each frame of (B, T, K, C)."""
    return block(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])


def over_frames(block: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a block of sequences (N, L, C) to the frames of each joint of (B, T, K, C)."""
    return over_joints(block, tokens.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention of sequences."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        if width % num_heads:
            raise ValueError(f'width={width} is no multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same."""
        q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """(N, L, parts * C) -> (parts, N, heads, L, C / heads)."""
    return x.unflatten(2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and an MLP, each after a norm and with a residual."""

    def __init__(self, width: int, num_heads: int, hidden: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.rate = drop_path_rate
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same."""
        x = x + drop_path(self.attn(self.norm1(x)), self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)
