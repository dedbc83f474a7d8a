"""Bodies from the 2D keypoints of a frame: what a pose model sees, lifted to SMPL's layout.

Such a model sees joints, not pixels, so it can be trained on synthetic poses alone and works behind
any 2D model. A residual network on 17 points, as Martinez et al., "A Simple Yet Effective Baseline
for 3D Human Pose Estimation", ICCV 2017, with rotations, shape and camera as its output.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...conventions import BODIES, COCO_17, COCO_17_FLIP, HEAD_FIELDS, SMPL_24, SMPL_24_FLIP
from ...files import shipped
from ...geometry import matrix_to_rotation_6d, rotation_6d_to_matrix
from ...weights.load import CheckpointError, read_weights

LIFTER = 'BodyLifter.safetensors'  # in assets
LIMIT = 4.0  # of normalized coordinates
LEAST_SCALE = 0.05

Lifter = TypeVar('Lifter', bound=nn.Module)


class BodyLifter(nn.Module):
    """COCO's 17 keypoints to a body and its camera.

    The result does not depend on where the person is in the image, nor on the size: keypoints are
    normalized by their mean and spread, weighted by their scores. A keypoint with score 0 counts as
    absent, and may be NaN.

    Args:
        width: of the layers. depth: residual blocks of two layers.
    """

    def __init__(self, width: int = 512, depth: int = 4):
        super().__init__()
        self.embed = nn.Linear(4 * len(COCO_17), width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.sizes = 6 * len(SMPL_24), BODIES['smpl'].num_betas, 3
        self.out = nn.Linear(width, sum(self.sizes))
        nn.init.normal_(self.out.weight, std=0.01)
        upright = torch.eye(3).repeat(len(SMPL_24), 1, 1)
        upright[0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # facing the camera
        first = torch.cat((matrix_to_rotation_6d(upright).ravel(), torch.zeros(10), torch.ones(3)))
        first[-2:] = 0
        with torch.no_grad():
            self.out.bias.copy_(first)

    def forward(self, keypoints: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Lift keypoints of any image.

        Args:
            keypoints: (B, 17, 2), x before y, in any unit.
            scores: (B, 17), 0 to 1; 0 for keypoints that are not known.

        Returns:
            `global_orient`, `body_pose`, `betas` as in `conventions.person`, and `camera` (B, 3) as
            (s, tx, ty): a point X of the body is at s * (X[:2] + t) in the keypoints' unit.
        """
        inputs, center, spread = normalize(keypoints, scores)
        return self.read_out(self.hidden(inputs), center, spread)

    def hidden(self, inputs: Tensor) -> Tensor:
        """Input (B, 68) of `normalize` -> (B, width)."""
        hidden = self.embed(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def read_out(self, hidden: Tensor, center: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """Bodies and cameras, see `forward`, of keypoints with this mean and spread."""
        pose, betas, camera = self.out(self.norm(hidden)).split(self.sizes, 1)
        rotations = rotation_6d_to_matrix(pose.unflatten(1, (len(SMPL_24), 6)))
        scale = spread * camera[:, :1].clamp_min(LEAST_SCALE)
        camera = torch.cat((scale, camera[:, 1:] + center / scale), 1)
        values = rotations[:, :1], rotations[:, 1:], betas, camera
        return dict(zip(HEAD_FIELDS, values, strict=True))

    @torch.no_grad()
    def lift(self, keypoints: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """`forward`, averaged with the mirrored person."""
        return mirror_averaged(self, keypoints, scores)


class Block(nn.Module):
    """Two layers after a norm, with a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layer_in, self.layer_out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.layer_out(F.gelu(self.layer_in(self.norm(x))))


def normalize(keypoints: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Network input (B, 68), and the mean (B, 2) and spread (B, 1) of the keypoints."""
    weights = scores[..., None]
    known = weights > 0
    keypoints = torch.where(known, keypoints, 0)
    total = weights.sum(1) + 1e-6
    center = (keypoints * weights).sum(1) / total
    offsets = keypoints - center[:, None]
    spread = ((offsets.square().sum(-1, keepdim=True) * weights).sum(1) / total).sqrt() + 1e-6
    known = known.to(keypoints.dtype)
    offsets = (offsets / spread[:, None]).clamp(-LIMIT, LIMIT) * known
    return torch.cat((offsets, known, weights), -1).flatten(1), center, spread


def mirror_averaged(
    lifter: Callable[[Tensor, Tensor], dict[str, Tensor]], keypoints: Tensor, scores: Tensor
) -> dict[str, Tensor]:
    """Result of a lifter, averaged with that of the mirrored person; as `BodyLifter.forward`."""
    one = lifter(keypoints, scores)
    flip = list(COCO_17_FLIP)
    two = lifter(keypoints[:, flip] * keypoints.new_tensor([-1, 1]), scores[:, flip])
    mirror = keypoints.new_tensor([[1, -1, -1], [-1, 1, 1], [-1, 1, 1]])
    both = (torch.cat((each['global_orient'], each['body_pose']), 1) for each in (one, two))
    rotations, mirrored = both
    mirrored = mirrored[:, list(SMPL_24_FLIP)] * mirror
    mean = rotation_6d_to_matrix(matrix_to_rotation_6d(rotations) + matrix_to_rotation_6d(mirrored))
    scale = (one['camera'][:, :1] + two['camera'][:, :1]) / 2
    origins = (each['camera'][:, :1] * each['camera'][:, 1:] for each in (one, two))
    origin, mirrored = origins  # of the body, in the keypoints' unit
    origin = (origin + mirrored * keypoints.new_tensor([-1, 1])) / 2
    camera = torch.cat((scale, origin / scale), 1)
    betas = (one['betas'] + two['betas']) / 2
    return dict(zip(HEAD_FIELDS, (mean[:, :1], mean[:, 1:], betas, camera), strict=True))


def load_lifter(path: str | Path | None = None) -> BodyLifter:
    """A trained lifter, in eval mode; None: the one that ships with this package.

    Raises:
        FileNotFoundError: no such file. CheckpointError: weights of something else.
    """
    return load_weights(BodyLifter(), shipped.asset(LIFTER) if path is None else Path(path))


def load_weights(lifter: Lifter, path: Path) -> Lifter:
    """The lifter with weights of a file, in eval mode; errors as of `load_lifter`."""
    if not path.is_file():
        raise FileNotFoundError(f'no file of weights {path} (from {Path.cwd()})')
    state = read_weights(path)
    try:
        lifter.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (RuntimeError, AttributeError) as error:
        keys = ', '.join(sorted(map(str, state))[:3]) if isinstance(state, dict) else type(state)
        raise CheckpointError(
            f'{path} holds no {type(lifter).__name__}, as tools/train_lifter.py writes it, but '
            f'{keys}...'
        ) from error
    return lifter.eval()
