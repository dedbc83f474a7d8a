"""HMR2.0's head: a single-query transformer decoder that regresses pose, shape and camera.

Goel et al., "Humans in 4D", ICCV 2023; equals SMPLTransformerDecoderHead of shubham-goel/4D-Humans
(hmr2/models/heads/smpl_head.py) on its weights. It computes less, because there is a single query
and its input is zero:

- Self-attention of one token is its value: queries and keys are not computed. Their weights stay
  in `to_qkv`, as in the official checkpoints and the paper's parameter counts; their gradient is
  zero.
- q . (W x) = (W^T q) . x and sum(a W x) = W sum(a x): the projections of keys and values are
  applied to the query and to the pooled map instead of to each of the 192 cells.
- The embedding of a zero input is its bias: bias and position embedding are one parameter, `token`.
- Each step of the iterative refinement starts from the same zero token, so all are equal: the
  residual is added `ief_iters` times.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...conventions import BODIES, HEAD_FIELDS, SMPL_24
from ...files import read_npz, shipped
from ...geometry import rotation_6d_to_matrix

WIDTH = 1024
EMBEDDED_MEAN_PARAMS = shipped.asset('mean_params.npz')

# Arrays of a mean parameter file: 24 rotations in 6D, betas, (s, tx, ty).
MEAN_PARAMS = {'pose': 6 * len(SMPL_24), 'shape': BODIES['smpl'].num_betas, 'cam': 3}


@MODELS.register_module()
class HMR2Head(BaseModule):
    """Features to SMPL parameters and a camera.

    Args:
        in_channels: channels of the feature map.
        depth, num_heads, head_dim, mlp_dim: the decoder (Table 1 of the paper).
        mean_params: npz with `pose` (144), `shape` (10) and `cam` (3), to which the predictions
            are added; None: those of the embedded body.
        ief_iters: number of times that the predicted residual is added.
        init_cfg: see mmengine.

    Raises:
        FileNotFoundError, ValueError: no mean parameters, or arrays of another size.
    """

    float32_tensors = ('mean_pose', 'mean_betas', 'mean_camera')  # see `deploy.lower`
    float32_layers = True  # of one token, and where an angle is decided

    def __init__(
        self,
        in_channels: int,
        depth: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        mean_params: str | Path | None = None,
        ief_iters: int = 1,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.in_channels, self.depth, self.mlp_dim = in_channels, depth, mlp_dim
        self.num_heads, self.head_dim, self.ief_iters = num_heads, head_dim, ief_iters

        # As PyTorch initializes the bias of a linear layer of one input, plus a position.
        self.token = nn.Parameter(torch.empty(1, WIDTH).uniform_(-1, 1) + torch.randn(1, WIDTH))
        self.layers = nn.ModuleList(
            DecoderLayer(in_channels, num_heads, head_dim, mlp_dim) for _ in range(depth)
        )
        mean = read_mean_params(EMBEDDED_MEAN_PARAMS if mean_params is None else mean_params)
        self.pose_out = nn.Linear(WIDTH, MEAN_PARAMS['pose'])
        self.betas_out = nn.Linear(WIDTH, MEAN_PARAMS['shape'])
        self.camera_out = nn.Linear(WIDTH, MEAN_PARAMS['cam'])
        self.register_buffer('mean_pose', mean['pose'])
        self.register_buffer('mean_betas', mean['shape'])
        self.register_buffer('mean_camera', mean['cam'])

    def forward(self, features: Tensor, with_attention: bool = False) -> dict[str, Tensor]:
        """Regress `conventions.HEAD_FIELDS` of each crop, in float32 or better.

        Args:
            features: (B, in_channels, H, W).
            with_attention: add `attention` (B, depth * num_heads, H, W), logarithms.
        """
        seen: list[Tensor] | None = [] if with_attention else None
        token = self.read(features, seen)
        means = self.mean_pose, self.mean_betas, self.mean_camera
        outs = self.pose_out, self.betas_out, self.camera_out
        pose, betas, camera = (
            mean + self.ief_iters * out(token).to(mean.dtype)
            for mean, out in zip(means, outs, strict=True)
        )
        matrices = rotation_6d_to_matrix(pose.unflatten(1, (len(SMPL_24), 6)))
        values = matrices[:, :1], matrices[:, 1:], betas, camera
        fields = dict(zip(HEAD_FIELDS, values, strict=True))
        if seen is not None:
            fields['attention'] = torch.cat(seen, 1).unflatten(2, features.shape[2:])
        return fields

    def read(self, features: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Token after all layers: (B, in_channels, H, W) -> (B, 1024).

        Args:
            seen: gets logarithms of each layer's attention (B, num_heads, H * W), float32.
        """
        cells = features.flatten(2)  # (B, C, H*W)
        token = self.token  # (1, 1024); (B, 1024) after the first layer
        for layer in self.layers:
            token = layer(token, cells, seen)
        return token


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and MLP of a single token, each after a layer norm."""

    def __init__(self, in_channels: int, num_heads: int, head_dim: int, mlp_dim: int):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm_self = nn.LayerNorm(WIDTH)
        self.to_qkv = nn.Linear(WIDTH, 3 * inner, bias=False)
        self.self_out = nn.Linear(inner, WIDTH)
        self.norm_cross = nn.LayerNorm(WIDTH)
        self.to_q = nn.Linear(WIDTH, inner, bias=False)
        self.to_kv = nn.Linear(in_channels, 2 * inner, bias=False)
        self.cross_out = nn.Linear(inner, WIDTH)
        self.norm_mlp = nn.LayerNorm(WIDTH)
        self.mlp_in = nn.Linear(WIDTH, mlp_dim)
        self.mlp_out = nn.Linear(mlp_dim, WIDTH)

    def forward(self, token: Tensor, cells: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """token (B or 1, 1024), cells (B, in_channels, N) -> (B, 1024); `seen`: see `read`."""
        value = F.linear(self.norm_self(token), self.to_qkv.weight.chunk(3)[2])
        token = token + self.self_out(value)
        token = token + self.cross_out(self.attend(self.norm_cross(token), cells, seen))
        return token + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(token))))

    def attend(self, token: Tensor, cells: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Softmax attention of the token to the cells: (B, heads * head_dim)."""
        keys, values = self.to_kv.weight.unflatten(0, (2, self.num_heads, -1))  # (heads, d, C)
        query = self.to_q(token).unflatten(1, (self.num_heads, -1))
        query = query * query.shape[-1] ** -0.5
        scores = torch.einsum('bhd,hdc->bhc', query, keys) @ cells  # (B, heads, N)
        if seen is not None:
            seen.append(scores.float().log_softmax(-1))
        pooled = scores.softmax(-1).to(cells.dtype) @ cells.transpose(1, 2)  # (B, heads, C)
        return torch.einsum('bhc,hdc->bhd', pooled, values).flatten(1)


def read_mean_params(path: str | Path) -> dict[str, Tensor]:
    """Read an npz: pose (1, 144), shape (1, 10) and cam (1, 3), float32."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'no mean parameters {path}; see "Body model" in README, or omit mean_params to '
            'start from those of the embedded body'
        )
    tensors, arrays = {}, read_npz(path, MEAN_PARAMS, 2**20)
    for name, size in MEAN_PARAMS.items():
        if name not in arrays:
            raise ValueError(f'{path} has no array {name!r}; expected {list(MEAN_PARAMS)}')
        array = arrays[name]
        if array.size != size:
            raise ValueError(
                f'{name} of {path} has shape {array.shape}, expected {size} numbers; '
                'the file for HMR2.0 is smpl_mean_params.npz'
            )
        if array.dtype.kind not in 'fiu' or not np.isfinite(array).all():
            raise ValueError(f'{name} of {path} has values that are not finite numbers')
        tensors[name] = torch.from_numpy(array.astype(np.float32)).reshape(1, size)
    return tensors
