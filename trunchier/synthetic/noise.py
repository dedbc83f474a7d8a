"""Errors of a 2D detector along a track, drawn after those that a model made.

Each keypoint has the model's own distribution of error sizes and of scores; sizes, directions and
scores are correlated in time, an AR(1) process each, and sizes also between the keypoints of a
frame. Limbs are taken for those of the other side, and keypoints are missing, for several frames in
a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..conventions import COCO_17_FLIP
from ..files import read_npz, shipped, whole_file

NOISE = 'detector_noise.npz'  # in assets: of VMPose-T-S2
QUANTILES = 33
BINS = torch.tensor([0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.09, 0.14, 0.22, 0.35])
SCORES = 9  # quantiles of scores
LEFT = ((5, 7, 9), (7, 9), (9,), (11, 13, 15), (13, 15), (15,))
LIMBS = LEFT + tuple(tuple(COCO_17_FLIP[joint] for joint in limb) for limb in LEFT)
STAY = 0.84  # chance that a swapped limb, or a missing keypoint, is so in the next frame, too


@dataclass
class DetectorNoise:
    """Lengths are fractions of the diagonal of the box around the person's keypoints."""

    sizes: Tensor  # (17, QUANTILES) of the length of the error
    scores: Tensor  # (len(BINS) + 1, SCORES) quantiles of the score, by length of the error
    persistence: Tensor  # (17,) AR(1) coefficients of the (normal) rank of the length
    direction: Tensor  # (1,) AR(1) coefficient of the direction
    confidence: Tensor  # (1,) and of the rank of the score
    shared: Tensor  # (1,) correlation of the ranks of two keypoints of a frame
    swapped: Tensor  # (2,) share of bodies with left for right, of other limbs on the other side's

    def sample(
        self,
        truth: Tensor,
        random: torch.Generator,
        level: Tensor | float = 1.0,
        drops: float = 0.02,
    ) -> tuple[Tensor, Tensor]:
        """Keypoints and scores, as a detector finds them.

        Args:
            truth: (B, T, 17, 2), exact keypoints of frames in a row, in any unit.
            level: (B, 1, 1) or number, multiplies lengths of errors and shares of swapped limbs:
                below 1, a better detector.
            drops: share of missing keypoints.

        Returns:
            keypoints (B, T, 17, 2), scores (B, T, 17), 0 where missing.
        """
        count, frames = truth.shape[:2]

        def normal(*shape):
            return torch.randn(*shape, generator=random)

        own = ar1(normal(count, frames, 17), self.persistence)
        common = ar1(normal(count, frames, 1), self.persistence.mean(0, keepdim=True))
        rank = _uniform((1 - self.shared).sqrt() * own + self.shared.sqrt() * common)
        length = quantile(self.sizes.expand(count, frames, -1, -1), rank) * level
        toward = ar1(normal(count, frames, 34), self.direction.expand(34)).unflatten(2, (17, 2))
        toward = toward / toward.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        found = truth.clone()
        body, limb_share = (self.swapped * torch.as_tensor(level).reshape(-1, 1)).split(1, 1)
        for limb in LIMBS:
            there = self._runs(count, frames, 1, limb_share / 2, random)
            for joint in limb:
                other = truth[:, :, COCO_17_FLIP[joint]]
                found[:, :, joint] = torch.where(there, other, found[:, :, joint])
        turned = self._runs(count, frames, 1, body, random)[..., None]
        found = torch.where(turned, found[:, :, list(COCO_17_FLIP)], found)
        size = (truth.amax(2) - truth.amin(2)).norm(dim=-1)[..., None, None]
        found = found + length[..., None] * toward * size
        real = (found - truth).norm(dim=-1) / size[..., 0]
        rank = _uniform(ar1(normal(count, frames, 17), self.confidence.expand(17)))
        scores = quantile(self.scores[torch.bucketize(real, BINS)], rank)
        missing = self._runs(count, frames, 17, torch.tensor(drops), random)
        return found, scores.clamp(0.01, 1) * ~missing

    @staticmethod
    def _runs(count, frames, width, share, random):
        """Two-state Markov chains (B, T, width) that are on for a share of the time."""
        on = torch.rand(count, width, generator=random) < share
        begin = share * (1 - STAY) / (1 - share).clamp_min(1e-6)
        rows = [on]
        draws = torch.rand(frames, count, width, generator=random)
        for draw in draws[1:]:
            rows.append(draw < torch.where(rows[-1], STAY, begin))
        return torch.stack(rows, 1)

    def save(self, path: str | Path) -> None:
        """Write an npz that `read_noise` reads."""
        with whole_file(path) as part, open(part, 'wb') as file:
            np.savez(file, **{each.name: getattr(self, each.name).numpy() for each in fields(self)})


def fit_noise(errors: Tensor, scores: Tensor, truth: Tensor) -> DetectorNoise:
    """The noise of a model, from its errors along tracks.

    Args:
        errors: (B, T, 17, 2), found less true positions over the size of the person.
        scores: (B, T, 17). truth: (B, T, 17, 2), in units of that size.
    """
    length = errors.norm(dim=-1)  # (B, T, 17)
    levels = torch.linspace(0, 1, QUANTILES)
    flip = list(COCO_17_FLIP)
    wrong = (truth + errors - truth[:, :, flip]).norm(dim=-1) < 0.5 * length
    wrong &= (length > 0.06) & (torch.arange(17) > 4)
    sizes = torch.stack([
        torch.quantile(one[~left], levels)
        for one, left in zip(length.flatten(0, 1).T, wrong.flatten(0, 1).T, strict=True)
    ])  # fmt: skip
    bins = torch.bucketize(length, BINS)
    rows = [scores[bins == each] for each in range(len(BINS) + 1)]
    rows = [each if len(each) else scores.flatten() for each in rows]
    score = torch.stack([torch.quantile(each, torch.linspace(0, 1, SCORES)) for each in rows])
    rank = _normal_rank(length.flatten(0, 1)).unflatten(0, length.shape[:2])
    persistence = _correlation(rank[:, :-1], rank[:, 1:]).clamp(0, 0.99)
    unit = errors / length[..., None].clamp_min(1e-6)
    direction = _coefficient_of_cosine((unit[:, 1:] * unit[:, :-1]).sum(-1).mean())
    within = torch.empty_like(scores)
    for each in range(len(BINS) + 1):
        inside = bins == each
        if inside.any():
            within[inside] = _normal_rank(scores[inside][:, None])[:, 0]
    confidence = _correlation(within[:, :-1].flatten(0, 1), within[:, 1:].flatten(0, 1)).mean()
    flat = rank.flatten(0, 1)
    pairs = (flat.T @ flat / len(flat)).masked_select(~torch.eye(17, dtype=torch.bool))
    whole = (wrong.sum(-1) >= 10).float().mean()
    swapped = torch.stack((whole, (wrong[:, :, 5:].float().mean() - whole).clamp_min(0)))
    single = (direction, confidence.clamp(0, 0.99), pairs.mean().clamp(0, 0.95))
    return DetectorNoise(sizes, score, persistence, *(each.reshape(1) for each in single), swapped)


def ar1(noise: Tensor, coefficient: Tensor) -> Tensor:
    """x_t = c x_(t-1) + sqrt(1 - c^2) noise_t, of unit variance: (B, T, N), (N,) -> (B, T, N)."""
    frames = noise.shape[1]
    time = torch.arange(frames)
    lag = (time[:, None] - time).clamp_min(0)
    weights = coefficient[:, None, None] ** lag * (time[:, None] >= time)
    new = (1 - coefficient**2).sqrt()[:, None] * torch.ones(frames)
    new[:, 0] = 1
    return torch.einsum('nts,bsn->btn', weights * new[:, None], noise)


def quantile(table: Tensor, rank: Tensor) -> Tensor:
    """Linear in a table of evenly spaced quantiles (..., Q), at ranks (...) of 0 to 1."""
    place = rank * (table.shape[-1] - 1)
    below = place.floor().clamp(0, table.shape[-1] - 2)
    low, high = (table.gather(-1, (below.long() + i)[..., None])[..., 0] for i in (0, 1))
    return low + (place - below) * (high - low)


def read_noise(path: str | Path | None = None) -> DetectorNoise:
    """Noise from a file of `DetectorNoise.save`; None: that of VMPose-T-S2, which ships.

    Raises:
        FileNotFoundError: no such file. ValueError: something else.
    """
    path = shipped.asset(NOISE) if path is None else path
    shapes = dict(
        sizes=(17, QUANTILES), scores=(len(BINS) + 1, SCORES), persistence=(17,), swapped=(2,)
    )  # fmt: skip
    names = [each.name for each in fields(DetectorNoise)]
    arrays = read_npz(path, names, 2**20)
    for name in names:
        shape = shapes.get(name, (1,))
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else 'nothing'
            raise ValueError(f'{name} of {path}: expected {shape}, found {found}')
    return DetectorNoise(**{name: torch.from_numpy(arrays[name]).float() for name in names})


def _uniform(normal):
    return (1 + torch.erf(normal / math.sqrt(2))) / 2


def _normal_rank(values):
    """Normal scores of the ranks within each column: (N, K) -> (N, K)."""
    rank = values.argsort(0).argsort(0).float()
    return math.sqrt(2) * torch.erfinv((2 * rank + 1) / len(values) - 1)


def _coefficient_of_cosine(cosine):
    """Correlation c of two plane normal vectors whose mean cosine is given.

    It is pi / 4 c F(1/2, 1/2; 2; c^2), with the hypergeometric function.
    """
    c = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    term = total = torch.ones_like(c)
    for n in range(400):
        term = term * c**2 * (n + 0.5) ** 2 / ((n + 1) * (n + 2))
        total = total + term
    return c[(math.pi / 4 * c * total - cosine).abs().argmin()].float()


def _correlation(a, b):
    """Of (..., K) along all but the last: (K,)."""
    a, b = (each.flatten(0, -2) - each.flatten(0, -2).mean(0) for each in (a, b))
    return (a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).sqrt().clamp_min(1e-9)
