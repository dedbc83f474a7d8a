"""Priors of KTPFormer (Peng et al., CVPR 2024) for MixSTE: skeleton and trajectory.

Written from a description of the architecture, and compared with recorded outputs of the authors'
code, which has no license. A prior is a plug-in of a network with MixSTE's embedding: the kinematic
prior (KPA) is in place of the linear embedding, the trajectory prior (TPA) follows it.
"""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...conventions import H36M_17_PARENTS
from .mixste import EPS, Attention, MixSTE, Mlp, check_window, over_frames, over_joints


@MODELS.register_module()
class KTPFormer(MixSTE):
    """MixSTE whose embedding knows the skeleton and the order of frames.

    Both priors are followed by the norms that all blocks share. There are seven pairs of blocks:
    the priors are the eighth.

    Args:
        parents: of each joint, -1 for the root.
        options: of `MixSTE`.
    """

    def __init__(
        self,
        in_channels: int = 2,
        width: int = 512,
        depth: int = 7,
        num_heads: int = 8,
        mlp_ratio: float = 2,
        seq_len: int = 243,
        parents: Sequence[int] = H36M_17_PARENTS,
        drop_path_rate: float = 0.1,
        init_cfg: dict | None = None,
    ):
        self.priors = dict(width=width, num_heads=num_heads, hidden=int(width * mlp_ratio))
        self.parents = tuple(parents)
        super().__init__(
            in_channels, width, depth, num_heads, mlp_ratio, len(self.parents), seq_len,
            drop_path_rate, init_cfg,
        )  # fmt: skip

    def build_embedding(self, in_channels: int, num_keypoints: int) -> None:
        """The two priors in place of MixSTE's embedding and positions."""
        bones = [(joint, parent) for joint, parent in enumerate(self.parents) if parent >= 0]
        chain = [(frame, frame + 1) for frame in range(self.seq_len - 1)]
        self.kinematic = PriorBlock(in_channels, adjacency(bones, num_keypoints), 1, **self.priors)
        self.trajectory = PriorBlock(self.width, adjacency(chain, self.seq_len), 2, **self.priors)

    def embed(self, keypoints: Tensor) -> Tensor:
        """(B, T, K, in_channels) -> tokens (B, T, K, width)."""
        check_window(keypoints, self.keypoints_shape, self.seq_len)
        tokens = self.spatial_norm(over_joints(self.kinematic, keypoints))
        return self.temporal_norm(over_frames(self.trajectory, tokens))


class PriorBlock(nn.Module):
    """Graph layers, then attention and an MLP with residuals.

    Args:
        graph: (n, n), see `adjacency`. layers: of the graph; two have a residual around them.
    """

    def __init__(
        self, in_channels: int, graph: Tensor, layers: int, width: int, num_heads: int, hidden: int
    ):
        super().__init__()
        inputs = [in_channels] + [width] * (layers - 1)
        self.graphs = nn.ModuleList(GraphLayer(channels, width, graph) for channels in inputs)
        self.position = nn.Parameter(torch.zeros(1, len(graph), width))
        self.norm1 = nn.LayerNorm(width)  # its eps is 1e-5, that of the others 1e-6
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, in_channels) -> (N, L, width), L at most the number of nodes."""
        tokens = x
        for graph in self.graphs:
            tokens = graph(tokens)
        if len(self.graphs) > 1:
            tokens = tokens + x
        tokens = tokens + self.position[:, : x.shape[1]]
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class GraphLayer(nn.Module):
    """Graph convolution with learned additions to the graph, a norm and a ReLU.

    A node and its neighbors have different weights; each node scales its own features.
    """

    def __init__(self, in_channels: int, width: int, graph: Tensor):
        super().__init__()
        self.register_buffer('graph', graph, persistent=False)
        self.weight = nn.Parameter(torch.empty(2, in_channels, width))
        nn.init.xavier_uniform_(self.weight, gain=1.414)
        self.scale = nn.Parameter(torch.ones(len(graph), width))
        self.learned = nn.Parameter(torch.full(graph.shape, 1e-6))
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.BatchNorm1d(width)

    def convolve(self, x: Tensor) -> Tensor:
        """(N, L, in_channels) -> (N, L, width), before norm and ReLU."""
        nodes = x.shape[1]
        edges = (self.graph + self.learned)[:nodes, :nodes]
        edges = (edges + edges.T) / 2
        own, others = (self.scale[:nodes] * (x @ weight) for weight in self.weight)
        loops = edges.diagonal()
        return loops[:, None] * own + (edges - loops.diag()) @ others + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, in_channels) -> (N, L, width)."""
        return self.norm(self.convolve(x).transpose(1, 2)).transpose(1, 2).relu()


def adjacency(edges: Sequence[tuple[int, int]], nodes: int) -> Tensor:
    """(nodes, nodes): each row is 1 over the number of neighbors at these, and 1 at itself."""
    graph = torch.zeros(nodes, nodes)
    for first, second in edges:
        graph[first, second] = graph[second, first] = 1
    graph = graph / graph.sum(1, keepdim=True).clamp(min=1)
    return graph.fill_diagonal_(1)
