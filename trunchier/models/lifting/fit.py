"""Bodies of a lifter, turned until they lie on the keypoints that they were lifted from.

A lifter knows depth, but its bodies are beside the keypoints. The most probable body is sought,
given that errors of the lifter are normal, with a covariance measured on synthetic people, and that
a keypoint is as far off as its score tells, or an outlier.
"""

import torch
from torch import Tensor

from ...conventions import BODIES, HEAD_FIELDS, SMPL_24
from ...files import read_npz, shipped
from ...geometry import axis_angle_to_matrix, coco_points

PRIOR = 'lifter_prior.npz'  # in assets; written by tools/train_lifter.py prior
STEPS = 3  # of Gauss-Newton; with more, nothing changes
SIGMA = 0.02  # error of a keypoint with score 1, of the person's size; others: by 1 / score^2
FRAMES = 4.0  # of a track, over which changes are averaged
OUTLIER = 3.0  # deviations from which a keypoint counts less and less (Geman-McClure)
FAR = 0.1  # of the person's size, where a keypoint has a quarter of its weight for the camera
POSE, SHAPE = 3 * len(SMPL_24), BODIES['smpl'].num_betas


class KeypointFit:
    """Gauss-Newton steps from the bodies of a lifter; constants were chosen on synthetic people.

    Attributes:
        points: COCO's keypoints of the embedded body.
        precision: (82, 82), inverse covariance of the turns of joints in their frames and of betas.
    """

    def __init__(self) -> None:
        self.points = coco_points(extra=False)
        (covariance,) = read_npz(shipped.asset(PRIOR), ('covariance',), 2**20).values()
        self.precision = torch.linalg.inv(torch.from_numpy(covariance).double()).float()

    @torch.no_grad()
    def __call__(
        self,
        bodies: dict[str, Tensor],
        keypoints: Tensor,
        scores: Tensor,
        frames: float | None = None,
    ) -> dict[str, Tensor]:
        """Bodies as of `BodyLifter.lift`, fitted to the same keypoints.

        Args:
            bodies: results of a lifter for the keypoints.
            keypoints: (B, 17, 2), in any unit. scores: (B, 17), 0 to 1; 0 for those not known,
                as those that are not finite are.
            frames: that changes are averaged over, as standard deviation of a bell curve, if these
                are one person in frames in a row; None: each by itself.
        """
        known = keypoints.isfinite().all(2) & scores.isfinite()
        keypoints, scores = (
            torch.where(known[..., None], keypoints, 0),
            torch.where(known, scores, 0),
        )
        change = bodies['betas'].new_zeros(len(scores), POSE + SHAPE)
        size = _extent(keypoints, scores)
        trust = (scores.square() / SIGMA).square()
        shifts = torch.eye(2).expand(*scores.shape, 2, 2)  # of the camera
        for _ in range(STEPS):
            pose = _changed(bodies, change)
            places, moves = self.points.jacobian(*pose)
            camera = fitted_camera(places, keypoints, scores, bodies['camera'])[:, None]
            pixels = camera[..., :1] * (places[..., :2] + camera[..., 1:])
            misses = (keypoints - pixels) / size
            weights = trust / (1 + trust * misses.square().sum(2) / OUTLIER**2).square()
            zoom = (pixels - pixels.mean(1, keepdim=True)) / size
            moves = moves[:, :, :2] * (camera[..., :1] / size)[..., None]
            columns = torch.cat((moves, zoom[..., None], shifts), 3)
            change = change + self._step(columns, misses, weights, change)
        if frames is not None:
            change = _averaged(change, (scores > 0).any(1).float(), frames)
        rotations, betas = _changed(bodies, change)
        places = self.points(rotations, betas)[1]
        camera = fitted_camera(places, keypoints, scores, bodies['camera'])
        values = rotations[:, :1], rotations[:, 1:], betas, camera
        return dict(zip(HEAD_FIELDS, values, strict=True))

    def _step(self, columns, misses, weights, change):
        """Change of pose and shape: fewer misses, and not far from the lifter's body."""
        columns, misses = columns.flatten(1, 2), misses.flatten(1)[..., None]
        weighted = columns.transpose(1, 2) * weights.repeat_interleave(2, 1)[:, None]
        normal, right = weighted @ columns, weighted @ misses
        body = slice(len(self.precision))
        normal[:, body, body] += self.precision
        right[:, body] -= self.precision @ change[..., None]
        # The camera is free, unless no keypoint tells it.
        normal.diagonal(dim1=1, dim2=2)[:, body.stop :] += 1e-3
        return torch.linalg.solve(normal, right)[:, body, 0]


def fitted_camera(points: Tensor, keypoints: Tensor, scores: Tensor, guess: Tensor) -> Tensor:
    """The camera that puts points of a body onto keypoints: least squares, weighted by scores.

    Keypoints far from their points count less (Geman-McClure).

    Args:
        points: (B, K, 3), meters. keypoints: (B, K, 2), in any unit. scores: (B, K), 0 to 1.
        guess: (B, 3), camera where the points do not tell one, such as two in the same place.

    Returns:
        (B, 3) as (s, tx, ty): a point X is at s * (X[:2] + t).
    """
    size, points = _extent(keypoints, scores), points[..., :2]
    weights = known = scores[..., None].square()
    for _ in range(STEPS):
        total = weights.sum(1, keepdim=True).clamp_min(1e-6)
        middle, center = (
            (weights * each).sum(1, keepdim=True) / total for each in (points, keypoints)
        )
        offsets = points - middle
        scale = (weights * offsets * (keypoints - center)).sum((1, 2))
        scale = (scale / (weights * offsets.square()).sum((1, 2)).clamp_min(1e-6))[:, None, None]
        misses = (keypoints - center - scale * offsets) / (FAR * size)
        weights = known / (1 + misses.square().sum(2, keepdim=True)).square()
    scale = scale[:, 0]
    usable = (scale > 0.5 * guess[:, :1]) & (scale < 2 * guess[:, :1])
    camera = torch.cat((scale, center[:, 0] / scale - middle[:, 0]), 1)
    return torch.where(usable, camera, guess)


def _changed(bodies, change):
    """Rotations (B, 24, 3, 3) and betas (B, 10) of bodies that were changed."""
    turns = axis_angle_to_matrix(change[:, :POSE].unflatten(1, (-1, 3)))
    rotations = torch.cat((bodies['global_orient'], bodies['body_pose']), 1) @ turns
    return rotations, bodies['betas'] + change[:, POSE:]


def _averaged(change, seen, frames):
    """Means over the frames around each (T, 82) where the person is seen (T,); shape: over all."""
    time = torch.arange(len(change))
    weights = torch.exp(-((time[:, None] - time) / frames).square() / 2) * seen
    near = weights @ change[:, :POSE] / weights.sum(1, keepdim=True).clamp_min(1e-6)
    whole = seen @ change[:, POSE:] / seen.sum().clamp_min(1)
    return torch.cat((near, whole.expand(len(change), -1)), 1)


def _extent(keypoints, scores):
    """Diagonal of the box around known keypoints: (B, 1, 1), in their unit."""
    known = (scores > 0)[..., None]
    far = keypoints.abs().max() + 1
    low = torch.where(known, keypoints, far).amin(1)
    high = torch.where(known, keypoints, -far).amax(1)
    return (high - low).norm(dim=1).clamp_min(1e-6)[:, None, None]
