"""Body model in SMPL's layout: from pose and shape to vertices and the 44 joints of HMR2.0.

SMPL (Loper et al., SIGGRAPH Asia 2015) by the library `smplx`, with the joint map and the extra
regressor of shubham-goel/4D-Humans (hmr2/models/smpl_wrapper.py). The default body is the
embedded one, permissively licensed, with SMPL's skeleton and numbers of vertices and faces. It is
not SMPL: its betas differ, and models trained on SMPL are not compatible. SMPL itself is read from
the npz that tools/convert_smpl.py writes.
"""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ...conventions import BODIES, EXTRA_19, SMPL_24, SMPL_PARENTS, SMPLX_TO_OPENPOSE
from ...files import need, read_npz, shipped

EMBEDDED_BODY = shipped.asset('body.npz')
FILE_NAME = 'SMPL_NEUTRAL.npz'

# Arrays of a body file. `shapedirs` may have more components: the first ones are used.
_, _, NUM_VERTICES, NUM_FACES, NUM_BETAS = BODIES['smpl']
SHAPES = {
    'v_template':        (NUM_VERTICES, 3),              # meters, y up, facing z
    'shapedirs':         (NUM_VERTICES, 3, NUM_BETAS),   # meters per unit of beta
    'posedirs':          (NUM_VERTICES, 3, 9 * 23),      # meters per entry of R - I; optional
    'J_regressor':       (len(SMPL_24), NUM_VERTICES),
    'J_regressor_extra': (len(EXTRA_19), NUM_VERTICES),  # SMPL_to_J19
    'weights':           (NUM_VERTICES, len(SMPL_24)),
    'kintree_table':     (2, len(SMPL_24)),
    'f':                 (NUM_FACES, 3),
}  # fmt: skip
MAX_BYTES = 2**27  # of an array: 300 components in float64 are 50 MB


class BodyModel(nn.Module):
    """Pose a body by linear blend skinning, in float32 also under autocast.

    It has no parameters, and its buffers are not saved in checkpoints: SMPL's license forbids
    redistribution.

    Args:
        path: npz from tools/convert_smpl.py, or the folder of SMPL_NEUTRAL.npz; None: the embedded
            body.

    Attributes:
        faces: (13776, 3) int64 array, vertex indices, counter-clockwise from outside.
        parents: 24 joint indices, -1 for the root.

    Raises:
        ImportError: `smplx` is not installed.
        FileNotFoundError, ValueError: no such file, or not a body in SMPL's layout.
    """

    parents = SMPL_PARENTS

    def __init__(self, path: str | Path | None = None):
        super().__init__()
        arrays = read_body(EMBEDDED_BODY if path is None else path)
        self.faces = arrays['f'].astype(np.int64)
        self.layer = _smplx_layer(arrays)
        extra = torch.from_numpy(arrays['J_regressor_extra'].astype(np.float32))
        self.register_buffer('joint_map', torch.tensor(SMPLX_TO_OPENPOSE), persistent=False)
        self.register_buffer('extra_regressor', extra, persistent=False)
        self._readout: tuple[Tensor, ...] | None = None

    def forward(self, global_orient: Tensor, body_pose: Tensor, betas: Tensor) -> dict[str, Tensor]:
        """Pose the body; its root joint is near the origin.

        Args:
            global_orient, body_pose, betas: (B, ...) each, as in `conventions.person`.

        Returns:
            meters: vertices (B, 6890, 3), joints (B, 44, 3), skeleton (B, 24, 3).
        """
        from smplx.lbs import lbs

        layer = self.layer
        with torch.autocast(betas.device.type, enabled=False):
            # Not layer(...): it reads the batch size as a number, which tracers take as constant.
            vertices, skeleton = lbs(
                betas.float(),
                torch.cat((global_orient, body_pose), dim=1).float(),
                layer.v_template,
                layer.shapedirs,
                layer.posedirs,
                layer.J_regressor,
                layer.parents,
                layer.lbs_weights,
                pose2rot=False,
            )
            openpose = layer.vertex_joint_selector(vertices, skeleton)[:, self.joint_map]
            extra = torch.einsum('bvc,jv->bjc', vertices, self.extra_regressor)
        joints = torch.cat((openpose, extra), dim=1)
        return {'vertices': vertices, 'joints': joints, 'skeleton': skeleton}

    def joints(self, global_orient: Tensor, body_pose: Tensor, betas: Tensor) -> dict[str, Tensor]:
        """`joints` and `skeleton` of `forward`, but for rounding, without the vertices.

        A joint is a sum over vertices, of each a sum over bones of the bone's motion of a point
        that is linear in betas and pose. The sum over vertices is done once, for each bone. That is
        a tenth of the arithmetic, and all that a loss of joints needs.
        """
        from smplx.lbs import batch_rigid_transform

        with torch.autocast(betas.device.type, enabled=False):
            points, shares, rest = self._reads(betas.device)
            rotations = torch.cat((global_orient, body_pose), dim=1).float()
            terms = torch.cat((torch.ones_like(betas[:, :1]), betas), dim=1).float()
            rest = torch.einsum('bd,kcd->bkc', terms, rest)
            skeleton, motions = batch_rigid_transform(rotations, rest, self.layer.parents)
            bent = (rotations[:, 1:] - torch.eye(3, device=betas.device)).flatten(1)
            points = torch.cat((terms, bent), dim=1) @ points  # (B, joints * bones * 3)
            points = points.unflatten(1, (*shares.shape, 3))
            moved = torch.einsum('bkrc,bjkc->bjr', motions[:, :, :3, :3], points)
            moved = moved + torch.einsum('bkr,jk->bjr', motions[:, :, :3, 3], shares)
        own = len(shares) - len(self.extra_regressor)
        openpose = torch.cat((skeleton, moved[:, :own]), dim=1)[:, self.joint_map]
        return {'joints': torch.cat((openpose, moved[:, own:]), dim=1), 'skeleton': skeleton}

    def _reads(self, device):
        """Of `joints`, computed when first needed.

        Returns:
            points (1 + 10 + 207, J * 24 * 3): of each joint and bone, in the rest pose, times the
                weight of the bone; by 1, betas and entries of R - I.
            shares (J, 24): weights of the bones.
            rest (24, 3, 1 + 10): the skeleton.
        """
        if self._readout is None or self._readout[0].device != device:
            layer = self.layer
            chosen = torch.eye(NUM_VERTICES, dtype=torch.float64)
            chosen = chosen[layer.vertex_joint_selector.extra_joints_idxs.cpu()]
            read = torch.cat((chosen, self.extra_regressor.cpu().double()))
            weights, template, shapes = (
                each.cpu().double()
                for each in (layer.lbs_weights, layer.v_template, layer.shapedirs)
            )
            poses = layer.posedirs.cpu().double().unflatten(1, (-1, 3)).permute(1, 2, 0)
            shaped = torch.cat((template[..., None], shapes), dim=2)
            basis = torch.cat((shaped, poses), dim=2)
            both = (read[:, None] * weights.T).flatten(0, 1)  # (J * 24, vertices)
            points = (both @ basis.flatten(1)).unflatten(1, basis.shape[1:])
            points = points.permute(2, 0, 1).flatten(1)
            rest = torch.einsum('kv,vcd->kcd', layer.J_regressor.cpu().double(), shaped)
            found = points, read @ weights, rest
            self._readout = tuple(each.float().to(device) for each in found)
        return self._readout


def read_body(path: str | Path) -> dict[str, np.ndarray]:
    """Read and check the arrays of a body file."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f'no {path.name} in {path.parent}; see "Body model" in README: '
            'trunchier convert-smpl writes it from the official files'
        )
    if path.suffix != '.npz':
        raise ValueError(
            f'{path} is not an npz; convert official SMPL files by trunchier convert-smpl'
        )
    arrays = read_npz(path, SHAPES, MAX_BYTES)
    arrays.setdefault('posedirs', np.zeros(SHAPES['posedirs'], np.float32))
    if 'shapedirs' in arrays:
        arrays['shapedirs'] = arrays['shapedirs'][..., :NUM_BETAS]
    check_body(arrays, path)
    return arrays


def check_body(arrays: dict[str, np.ndarray], path: str | Path) -> None:
    """Raise ValueError, naming `path`, unless the arrays are a body in SMPL's layout."""
    for name, shape in SHAPES.items():
        if name not in arrays:
            raise ValueError(f'{path} has no array {name!r}; see trunchier convert-smpl')
        if arrays[name].shape != shape:
            raise ValueError(
                f'{name} of {path} has shape {arrays[name].shape}, expected {shape}: '
                'only bodies in the layout of SMPL are supported'
            )
        if arrays[name].dtype.kind not in 'fiu' or not np.isfinite(arrays[name]).all():
            raise ValueError(f'{name} of {path} has values that are not finite numbers')
    if arrays['f'].min() < 0 or arrays['f'].max() >= NUM_VERTICES:
        raise ValueError(f'f of {path} names vertices outside of 0 to {NUM_VERTICES - 1}')
    if tuple(arrays['kintree_table'][0, 1:].astype(int)) != SMPL_PARENTS[1:]:
        raise ValueError(
            f'kintree_table of {path} is not the skeleton of SMPL '
            '(conventions.SMPL_PARENTS); only bodies in the layout of SMPL are supported'
        )


def _smplx_layer(arrays):
    remedy = 'pip install smplx==0.1.28 (its license is non-commercial; see README)'
    smplx = need('smplx', 'the body model', remedy)
    # smplx prints a warning about files with ten betas, but HMR uses no more.
    with contextlib.redirect_stdout(io.StringIO()):
        layer = smplx.SMPLLayer('', data_struct=SimpleNamespace(**arrays), num_betas=NUM_BETAS)
    for module in layer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    del layer.parents
    layer.parents = _Parents(SMPL_PARENTS)
    return layer


class _Parents(tuple):
    """Replaces smplx's tensor of parents, which would synchronize with the GPU 23 times."""

    @property
    def shape(self):
        return (len(self),)
