"""Smoothing of tracks that looks at later frames, too: a filter without lag, or an energy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..conventions import H36M_17_FLIP
from .windows import WindowModel

if TYPE_CHECKING:
    from .predictor import Predictor

METHODS = 'one-euro', 'offline', 'guidance'
SIGMA = 0.1  # seconds, of the filter's weights; lower: less smooth
REACH = 2.5  # of a filter's weights, sigmas
ACCELERATION = 30.0  # weight of squared accelerations against squared distances, at 30 fps


def smooth_option(smooth: bool | str | dict[str, float] | None) -> str | dict[str, float] | None:
    """What a run takes: a method that looks ahead, options of the One-Euro filter, or None."""
    if isinstance(smooth, str) and smooth not in METHODS:
        raise ValueError(f'smooth is one of {", ".join(METHODS)}, got {smooth!r}')
    if smooth == METHODS[0] or smooth is True:
        return {}
    if isinstance(smooth, dict):
        return dict(smooth)
    return smooth or None


class Smoother(WindowModel):
    """Smooth a predictor's fields along each track.

    'offline' fits a parabola to the frames around each, weighted by a Gaussian of SIGMA seconds: a
    symmetric filter, so it has no lag; at the ends of a track it looks to one side. 'guidance'
    lowers the energy of accelerations, and of joints also `PhysicalGuidance`: sides of equal size,
    bones of constant length. People without a track stay as they are.

    Args:
        method: of METHODS[1:].
        predictor: says which fields are smoothed, and what follows from them.
        fps: frame rate of the video.
    """

    what: ClassVar[str] = 'smoothed'
    replaces: ClassVar[bool] = True

    def __init__(self, method: str, predictor: Predictor, fps: float = 30.0):
        self.method, self.predictor, self.inputs = method, predictor, predictor.smoothed
        self.order = tuple(getattr(getattr(predictor, 'windows', None), 'flip', ()))
        self.sigma = max(SIGMA * fps, 0.5)  # frames
        self.weight = ACCELERATION * (fps / 30) ** 4
        self.margin = int(np.ceil(REACH * self.sigma))
        self.length, self.overlap = 8 * self.margin, 3 * self.margin

    def at(self, fps: float) -> Smoother:
        return type(self)(self.method, self.predictor, fps)

    def __call__(
        self, fields: dict[str, np.ndarray], known: np.ndarray, result: Any
    ) -> dict[str, np.ndarray]:
        if self.method == 'guidance':
            return {name: self._lower(name, values) for name, values in fields.items()}
        kernels = np.stack([parabolas(row, self.sigma, self.margin) for row in known])
        return {
            name: np.einsum('bst,bt...->bs...', kernels, values) for name, values in fields.items()
        }

    def _lower(self, name, values):
        """Lower the energy of a field (B, T, ...)."""
        import torch

        from ..models.lifting.guidance import Energy, PhysicalGuidance, motion_energy, smooth

        unit = 1.0
        if name == 'keypoints':  # pixels; the energies of joints are in meters
            unit = np.maximum(np.ptp(values, axis=2).max((1, 2), initial=1e-6), 1e-6)
            unit = unit[:, None, None, None]
        track = torch.from_numpy(values / unit).float()
        flat = track.flatten(2).unflatten(2, (-1, track.shape[-1]))
        terms: list[Energy] = [motion_energy(weight=self.weight / track.shape[-1])]
        if name == 'joints' and self.order == H36M_17_FLIP:
            # The spring of `smooth` is a mean over coordinates, these are means over joints.
            terms.append(PhysicalGuidance(symmetry=0.3, bone_variance=1.0, motion=0.0))

        def energy(points):
            return sum(term(points) for term in terms)

        rate = 1 / (1 + 16 * self.weight) / 2
        smoothed = smooth(flat, energy, steps=200, rate=rate)
        return smoothed.reshape(track.shape).numpy() * unit

    def finish(self, result: Any, values: dict[str, np.ndarray]) -> None:
        people = result.pred_instances
        if not len(people) or 'track_ids' not in people:
            return
        for name, array in values.items():
            if array.shape[-2:] == (3, 3):
                import torch

                from ..geometry import matrix_to_rotation_6d, rotation_6d_to_matrix

                columns = matrix_to_rotation_6d(torch.from_numpy(array))
                array = rotation_6d_to_matrix(columns).numpy()
            people.set_field(array, name)
        for name, array in self.predictor.derived(people).items():
            people.set_field(array, name)


def parabolas(known: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """Weights (T, T) of frames for the value of each: local parabolas, weighted by a Gaussian.

    Args:
        known: (T,) bool. sigma, reach: frames.
    """
    frames = np.arange(len(known))
    apart = frames - frames[:, None]  # (target, frame)
    weights = np.exp(-0.5 * (apart / sigma) ** 2) * known * (abs(apart) <= reach)
    powers = (apart / reach)[..., None] ** np.arange(3)  # (T, T, 3)
    moments = np.einsum('st,sti,stj->sij', weights, powers, powers)
    moments += np.diag([1e-12, 1e-6, 1e-6])  # of tracks that are too short for a parabola
    first = np.linalg.solve(moments, np.broadcast_to([[1.0], [0], [0]], (len(known), 3, 1)))
    kernels = weights * np.einsum('sti,si->st', powers, first[..., 0])
    return kernels / np.maximum(np.abs(kernels.sum(1, keepdims=True)), 1e-12)
