"""MotionAGFormer (Mehraban et al., WACV 2024): attention beside graphs, over joints and over time.

Outputs equal those of TaatiTeam/MotionAGFormer (`model/MotionAGFormer.py`), and with
`HourglassTokenizer` those of NationalGAILab/HoT (`model/motionagformer`). The last two layers of
the authors' network, to 512 channels and to joints, are `LiftingHead`.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...conventions import H36M_17_PARENTS
from ..backbones.base import drop_path
from .mixste import Attention, Mlp, check_window, over_frames, over_joints

# Bones that the authors' graph has in one direction alone: the first joint does not get the second.
ONE_WAY = (0, 4), (8, 11), (8, 14)


@MODELS.register_module()
class MotionAGFormer(BaseModule):
    """Layers of two streams, of attention and of graph convolutions, and their weighted mean.

    Each stream has a block over the joints of a frame, then one over the frames of a joint. Edges
    between frames are those of the most similar features.

    Args:
        in_channels: of a keypoint: 3 with a score. width: channels of a token.
        neighbors: of a frame, in the graphs over time. HoT has 4, and `num_heads=4`.
        seq_len: longest window, in frames. Norms of graphs have parameters for each.
    """

    causal = False
    qkv_bias = False  # here and in TRA of `HourglassTokenizer`

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 128,
        depth: int = 16,
        num_heads: int = 8,
        mlp_ratio: float = 4,
        neighbors: int = 2,
        seq_len: int = 243,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.width, self.depth, self.seq_len = width, depth, seq_len
        self.keypoints_shape = len(H36M_17_PARENTS), in_channels
        self.embedding = nn.Linear(in_channels, width)
        self.position = nn.Parameter(torch.zeros(1, len(H36M_17_PARENTS), width))
        sizes = width, num_heads, int(width * mlp_ratio), neighbors, seq_len, drop_path_rate
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def shorten(self, schedule: dict[int, int]) -> None:
        """Give later layers norms of fewer frames, {layer: frames}, for `HourglassTokenizer`."""
        for first, frames in schedule.items():
            for layer in self.layers[first:]:
                layer.graph_temporal.mixer.norm = NodeNorm(frames)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Features of windows, see `MixSTE.forward`; a shorter window has the first frames' norms.

        Args:
            keypoints: (B, T, 17, in_channels), of Human3.6M.

        Returns:
            (B, T, 17, width).
        """
        tokens = self.embed(keypoints)
        for index in range(self.depth):
            tokens = self.run_layer(index, tokens)
        return self.finish(tokens)

    def embed(self, keypoints: Tensor) -> Tensor:
        """(B, T, 17, in_channels) -> tokens (B, T, 17, width)."""
        check_window(keypoints, self.keypoints_shape, self.seq_len)
        return self.embedding(keypoints) + self.position

    def run_layer(self, index: int, tokens: Tensor) -> Tensor:
        """Layer `index`, (B, T, 17, width) -> the same."""
        return self.layers[index](tokens)

    def finish(self, tokens: Tensor) -> Tensor:
        """Tokens after the last layer -> features."""
        return self.norm(tokens)

    def temporal_qkv(self, index: int) -> tuple[list[nn.Module], bool]:
        """See `MixSTE.temporal_qkv`."""
        return [self.layers[index].att_temporal.mixer.qkv], True


class Layer(nn.Module):
    """Both streams, and their mean with weights for each token."""

    def __init__(
        self, width: int, num_heads: int, hidden: int, neighbors: int, frames: int, rate: float
    ):
        super().__init__()
        mixers = dict(
            att_spatial=Attention(width, num_heads, qkv_bias=False),
            att_temporal=Attention(width, num_heads, qkv_bias=False),
            graph_spatial=GraphMixer(width, len(H36M_17_PARENTS), skeleton()),
            graph_temporal=GraphMixer(width, frames, neighbors),
        )
        for name, mixer in mixers.items():
            self.add_module(name, MixerBlock(width, hidden, mixer, rate))
        self.fusion = nn.Linear(2 * width, 2)
        nn.init.zeros_(self.fusion.weight)
        nn.init.constant_(self.fusion.bias, 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, 17, width) -> the same."""
        first = over_frames(self.att_temporal, over_joints(self.att_spatial, tokens))
        second = over_frames(self.graph_temporal, over_joints(self.graph_spatial, tokens))
        weights = self.fusion(torch.cat((first, second), -1)).softmax(-1)
        return first * weights[..., :1] + second * weights[..., 1:]


class MixerBlock(nn.Module):
    """A mixer and an MLP, each after a norm, with a residual and a scale for each channel."""

    def __init__(self, width: int, hidden: int, mixer: nn.Module, rate: float):
        super().__init__()
        self.rate, self.mixer = rate, mixer
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), 1e-5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same."""
        x = x + drop_path(self.scale1 * self.mixer(self.norm1(x)), self.rate, self.training)
        return x + drop_path(self.scale2 * self.mlp(self.norm2(x)), self.rate, self.training)


class GraphMixer(nn.Module):
    """Graph convolution of nodes, with a norm for each node, a residual and a ReLU.

    Args:
        edges: (nodes, nodes) of 0 and 1, row i has the neighbors of i; or a number: each node gets
            as many most similar ones, by the products of their features.
    """

    def __init__(self, width: int, nodes: int, edges: Tensor | int):
        super().__init__()
        self.neighbors = edges if isinstance(edges, int) else None
        self.register_buffer('edges', None if self.neighbors else edges, persistent=False)
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.own, self.others):
            nn.init.normal_(layer.weight, std=(2 / width) ** 0.5)
        self.norm = NodeNorm(nodes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same."""
        found = normalized(self.edges_of(x)) @ self.others(x) + self.own(x)
        return (x + self.norm(found)).relu()

    def edges_of(self, x: Tensor) -> Tensor:
        """0 and 1: (L, L), or (N, L, L) by similarity, where nodes as similar as the last count."""
        if self.neighbors is None:
            return self.edges.to(x.dtype)
        similarity = x @ x.mT
        least = similarity.topk(min(self.neighbors, x.shape[1])).values[..., -1:]
        return (similarity >= least).to(x.dtype)


class NodeNorm(nn.BatchNorm1d):
    """BatchNorm1d of nodes (N, L, C), of which there may be fewer than parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C) -> the same."""
        arrays = self.running_mean, self.running_var, self.weight, self.bias
        arrays = (each[: x.shape[1]] for each in arrays)
        return F.batch_norm(x, *arrays, self.training, self.momentum, self.eps)


def skeleton() -> Tensor:
    """(17, 17): row i has the joints that joint i of Human3.6M gets features from."""
    edges = torch.zeros(17, 17)
    for joint, parent in enumerate(H36M_17_PARENTS[1:], 1):
        edges[joint, parent] = edges[parent, joint] = 1
    edges[tuple(zip(*ONE_WAY, strict=True))] = 0
    return edges


def normalized(edges: Tensor) -> Tensor:
    """Edges (..., L, L) over the roots of the numbers of neighbors of both ends."""
    scale = edges.sum(-1).rsqrt()
    return scale[..., :, None] * edges * scale[..., None, :]
