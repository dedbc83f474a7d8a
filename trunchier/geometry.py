"""Rotations, cameras, similarity alignment, points of a posed body: pure tensor functions.

They match shubham-goel/4D-Humans (hmr2/utils/geometry.py, renderer.py, pose_utils.py) except where
it is ill-defined: axis-angle is exact at and near zero (there, 1e-8 is added before the norm, and
one input gives NaN), the cross product never picks a wrong axis, the alignment of identical points
is finite. Under autocast, rotations are computed in float32 or better, by sums instead of matrix
products, which autocast would round.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .conventions import COCO_17, FOCAL_LENGTH, IMAGE_SIZE, SMPL_PARENTS
from .files import shipped


# --- Rotations -----------------------------------------------------------------------------------
def rotation_6d_to_matrix(x: Tensor) -> Tensor:
    """Gram-Schmidt of two columns (Zhou et al., CVPR 2019): (..., 6) -> (..., 3, 3).

    `x` is the first column of the matrix, then the second (rows in pytorch3d). A column without
    direction (zero, or parallel to the first) is zero.
    """
    x = _at_least_float32(x)
    first = F.normalize(x[..., :3], dim=-1)
    second = x[..., 3:]
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    third = torch.linalg.cross(first, second, dim=-1)
    return torch.stack((first, second, third), dim=-1)


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """Concatenate the first two columns: (..., 3, 3) -> (..., 6)."""
    return torch.cat((matrix[..., 0], matrix[..., 1]), dim=-1)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula: (..., 3), radians -> (..., 3, 3).

    Exact for every angle, with finite gradients at zero:

    R = cos(t) I + sin(t)/t [v]x + (1 - cos(t))/t^2 v v^T,   t = |v|
    """
    v = _at_least_float32(axis_angle)
    square = v.square().sum(-1)
    small = square < 1e-4
    # The unused branch of `where` is differentiated too: it needs an angle with finite gradients.
    angle = torch.where(small, 1.0, square).sqrt()
    sine = torch.where(small, 1 - square / 6 + square**2 / 120, angle.sin() / angle)
    half = (angle / 2).sin() / angle
    versine = torch.where(small, 0.5 - square / 24 + square**2 / 720, 2 * half.square())
    cosine = 1 - versine * square

    x, y, z = v.unbind(-1)
    wx, wy, wz = (sine * each for each in (x, y, z))
    xx, yy, zz = (versine * each * each for each in (x, y, z))
    xy, xz, yz = versine * x * y, versine * x * z, versine * y * z
    entries = (
        cosine + xx, xy - wz, xz + wy,
        xy + wz, cosine + yy, yz - wx,
        xz - wy, yz + wx, cosine + zz,
    )  # fmt: skip
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Axis-angle, stable at 0 and at pi: (..., 3, 3) -> (..., 3), radians, of length 0 to pi.

    The matrix is first converted to a quaternion, by the one of four formulas that divides by the
    largest component (Shepperd, 1978).
    """
    m = _at_least_float32(matrix)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in m.unbind(-2))
    entries = (
        1 + xx + yy + zz, zy - yz, xz - zx, yx - xy,
        zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx,
        xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz,
        yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz,
    )  # fmt: skip
    candidates = torch.stack(entries, dim=-1).unflatten(-1, (4, 4))  # row i: 4 * q[i] * q, wxyz
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    quaternion = F.normalize(candidates.take_along_dim(best, dim=-2).squeeze(-2), dim=-1)
    # q and -q are the same rotation; the one with w >= 0 has the smaller angle.
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)

    w, axis = quaternion[..., 0], quaternion[..., 1:]
    square = axis.square().sum(-1)
    small = square < 1e-6
    sine = torch.where(small, 1.0, square).sqrt()
    cosine = torch.where(small, w, 1.0)
    series = (1 - square / (3 * cosine**2) + square**2 / (5 * cosine**4)) / cosine
    return 2 * torch.where(small, series, torch.atan2(sine, w) / sine)[..., None] * axis


def mean_rotation(matrices: Tensor) -> Tensor:
    """The rotation nearest to all, in the chordal distance: (N, ..., 3, 3) -> (..., 3, 3)."""
    u, _, vh = torch.linalg.svd(_at_least_float32(matrices).sum(0))
    u[..., 2] *= torch.det(u @ vh)[..., None]
    return u @ vh


def _at_least_float32(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# --- Cameras -------------------------------------------------------------------------------------
def perspective_projection(points: Tensor, translation: Tensor, focal: Tensor) -> Tensor:
    """Pinhole projection. Points at depth 0 are not finite, points behind the camera are mirrored.

    Args:
        points: (B, N, 3), meters.
        translation: (B, 3), meters, added to the points; z points away from the camera.
        focal: (B, 2), in the unit of the result.

    Returns:
        (B, N, 2), x before y, from the principal point, in pixels if focal is.
    """
    points = points + translation[:, None]
    return points[..., :2] / points[..., 2:] * focal[:, None]


def camera_to_translation(camera: Tensor) -> Tensor:
    """Translation of the body in its crop's camera: (B, 3) as (s, tx, ty) -> (B, 3), meters."""
    scale, x, y = camera.unbind(-1)
    return torch.stack((x, y, 2 * FOCAL_LENGTH / (IMAGE_SIZE * scale + 1e-9)), dim=-1)


def seen_columns(images: Tensor) -> Tensor:
    """Middle three quarters of the columns of square crops (..., H, W), which the backbone sees."""
    margin = images.shape[-1] // 8
    return images[..., margin : images.shape[-1] - margin]


def full_image_focal(image_size: Tensor) -> Tensor:
    """Focal length that 4D-Humans assumes for a whole image: that of a crop as large as it is.

    `image_size` is (B, 2) as (width, height), pixels; returns (B,), pixels.
    """
    return FOCAL_LENGTH / IMAGE_SIZE * image_size.amax(-1)


def camera_crop_to_full(
    camera: Tensor, box_center: Tensor, box_size: Tensor, image_size: Tensor, focal: Tensor | float
) -> Tensor:
    """Translation in the frame of the whole image's camera; its center is the principal point.

    Args:
        camera: (B, 3) as (s, tx, ty), of the crop.
        box_center: (B, 2), pixels, x before y.
        box_size: (B,), side of the square box, pixels.
        image_size: (B, 2) as (width, height), pixels.
        focal: (B,) or a number, pixels, of the whole image (see `full_image_focal`).

    Returns:
        (B, 3), meters.
    """
    scale = box_size * camera[:, 0] + 1e-9
    shift = 2 * (box_center - image_size / 2) / scale[:, None]
    return torch.cat((camera[:, 1:] + shift, (2 * focal / scale)[:, None]), dim=-1)


# --- Alignment -----------------------------------------------------------------------------------
def similarity_transform(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares scale, rotation and translation from `source` to `target`.

    Umeyama, PAMI 1991; computed in float64, without reflections. Degenerate sets stay finite:
    identical source points get scale 0 and are mapped to the target's mean; for points on a line,
    or where reflections tie, the rotation is one of several equally good ones.

    Args:
        source, target: (B, N, 3), in the same unit.

    Returns:
        scale (B,), rotation (B, 3, 3), translation (B, 3), float64:
        target ~ scale * rotation @ source + translation.
    """
    source, target = source.double(), target.double()
    source_mean, target_mean = source.mean(1), target.mean(1)
    centered_source = source - source_mean[:, None]
    centered_target = target - target_mean[:, None]

    covariance = centered_target.transpose(1, 2) @ centered_source
    u, singular, vh = torch.linalg.svd(covariance)
    signs = torch.ones_like(singular)
    signs[:, 2] = torch.linalg.det(u @ vh).sign()
    rotation = (u * signs[:, None]) @ vh

    variance = centered_source.square().sum((1, 2))
    scale = (singular * signs).sum(1) / variance.clamp_min(torch.finfo(torch.float64).tiny)
    translation = target_mean - scale[:, None] * (rotation @ source_mean[..., None])[..., 0]
    return scale, rotation, translation


def align_similarity(source: Tensor, target: Tensor) -> Tensor:
    """Apply `similarity_transform` from `source` to `target`: (B, N, 3), float64."""
    scale, rotation, translation = similarity_transform(source, target)
    rotated = source.double() @ rotation.transpose(1, 2)
    return scale[:, None, None] * rotated + translation[:, None]


# --- Skinning ------------------------------------------------------------------------------------
class SkinnedPoints:
    """Points that are weighted sums of vertices, posed by linear blend skinning without vertices.

    The sum over vertices is taken once per bone: p_k = sum_j (R_j c_kj + m_kj t_j), where c_kj is
    linear in the shape. Exact for bodies without pose correctives, and hundreds of times cheaper.

    Args:
        template: (V, 3), meters.
        shapedirs: (V, 3, S), meters per unit of shape.
        weights: (V, J), of skinning.
        joint_regressor: (J, V).
        regressor: (K, V), of the points.
        parents: J joint indices, -1 for the root; a joint comes after its parent.
    """

    def __init__(
        self,
        template: Tensor,
        shapedirs: Tensor,
        weights: Tensor,
        joint_regressor: Tensor,
        regressor: Tensor,
        parents: tuple[int, ...],
    ):
        template, shapedirs, weights, joint_regressor, regressor = (
            each.double() for each in (template, shapedirs, weights, joint_regressor, regressor)
        )
        self.joints = (joint_regressor @ template).float()
        self.joint_dirs = torch.einsum('jv,vcs->jcs', joint_regressor, shapedirs).float()
        # Vertices that no point uses are left out.
        used = regressor.abs().sum(0) > 0
        template, shapedirs, weights = template[used], shapedirs[used], weights[used]
        shares = regressor[:, used, None] * weights  # (K, V, J)
        self.mass = shares.sum(1).float()
        self.offsets = torch.einsum('kvj,vc->kjc', shares, template).float()
        self.offset_dirs = torch.einsum('kvj,vcs->kjcs', shares, shapedirs).float()
        depth = [0] * len(parents)
        for joint, parent in enumerate(parents[1:], 1):
            depth[joint] = depth[parent] + 1
        self.levels = [
            [joint for joint in range(len(parents)) if depth[joint] == level]
            for level in range(1, max(depth) + 1)
        ]
        self.parents = parents
        above = [{joint} for joint in range(len(parents))]  # itself and the joints that move it
        for joint, parent in enumerate(parents[1:], 1):
            above[joint] |= above[parent]
        self.moves = torch.tensor(
            [[float(joint in each) for each in above] for joint in range(len(parents))]
        )

    def __call__(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Pose the body; its root joint is where the shape has it, near the origin.

        Args:
            rotations: (B, J, 3, 3), relative to the parent.
            betas: (B, S).

        Returns:
            meters: joints (B, J, 3), points (B, K, 3).
        """
        turned, joints, shifts = self._skeleton(rotations, betas)
        points = torch.einsum('bjcd,bkjd->bkc', turned, self._offsets(betas))
        return joints, points + torch.einsum('kj,bjc->bkc', self.mass, shifts)

    def jacobian(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Pose the body, and tell how its points move.

        Args: as of a call.

        Returns:
            points (B, K, 3), meters, and their derivatives (B, K, 3, 3 * J + S): by a turn of each
            joint about the axes of its own frame (R exp(w), radians), then by betas.
        """
        turned, joints, shifts = self._skeleton(rotations, betas)
        shares = torch.einsum('bjcd,bkjd->bkjc', turned, self._offsets(betas))
        shares = shares + self.mass[..., None] * shifts[:, None]  # of the bones in each point
        # What hangs on a joint turns about it.
        moved = torch.einsum('jd,bkdc->bkjc', self.moves, shares)
        arms = moved - (self.mass @ self.moves.T)[..., None] * joints[:, None]
        axes = turned.transpose(2, 3)[:, None]  # (B, 1, J, 3 axes, 3)
        by_pose = torch.linalg.cross(axes, arms[:, :, :, None], dim=-1)
        parents = list(self.parents[1:])
        bones = turned[:, parents] @ (self.joint_dirs[1:] - self.joint_dirs[parents])
        bones = torch.cat((self.joint_dirs[:1].expand(len(bones), -1, -1, -1), bones), 1)
        sliding = torch.einsum('jd,bjcs->bdcs', self.moves, bones) - turned @ self.joint_dirs
        by_shape = torch.einsum('bjcd,kjds->bkcs', turned, self.offset_dirs)
        by_shape = by_shape + torch.einsum('kj,bjcs->bkcs', self.mass, sliding)
        by_pose = by_pose.permute(0, 1, 4, 2, 3).flatten(3)
        return shares.sum(2), torch.cat((by_pose, by_shape), 3)

    def _offsets(self, betas):
        return self.offsets + torch.einsum('kjcs,bs->bkjc', self.offset_dirs, betas)

    def _skeleton(self, rotations, betas):
        """Rotations of the joints in space, their places, and where their frames' zero is."""
        rest = self.joints + torch.einsum('jcs,bs->bjc', self.joint_dirs, betas)
        world: list[Tensor] = [rotations[:, 0]] * len(self.parents)
        places: list[Tensor] = [rest[:, 0]] * len(self.parents)
        for level in self.levels:
            above = [self.parents[joint] for joint in level]
            turned = torch.stack([world[joint] for joint in above], 1)
            bones = (turned @ (rest[:, level] - rest[:, above])[..., None])[..., 0]
            for i, joint in enumerate(level):
                world[joint] = turned[:, i] @ rotations[:, joint]
                places[joint] = places[above[i]] + bones[:, i]
        turned, joints = torch.stack(world, 1), torch.stack(places, 1)
        return turned, joints, joints - (turned @ rest[..., None])[..., 0]


def coco_points(extra: bool = True) -> SkinnedPoints:
    """COCO's 17 keypoints of the embedded body, and with `extra` the 19 of HMR2.0's regressor."""
    with np.load(shipped.asset('body.npz')) as file:
        names = file['coco17_names'].tolist()
        coco = file['coco17_regressor'][[names.index(name) for name in COCO_17]]
        arrays = [file[name] for name in ('v_template', 'shapedirs', 'weights', 'J_regressor')]
        arrays.append(np.concatenate((coco, file['J_regressor_extra'])) if extra else coco)
    return SkinnedPoints(*map(torch.from_numpy, arrays), parents=SMPL_PARENTS)
