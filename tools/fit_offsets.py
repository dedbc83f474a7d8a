"""Offsets between COCO's keypoints, as people annotate them, and those of the embedded body.

  python tools/fit_offsets.py keypoints.json          # annotations in COCO's format
  python tools/fit_offsets.py --simulate 6            # as many people with offsets that are known

A body is fitted to each person's keypoints; what it leaves is explained by one offset for each kind
of keypoint, in the frame of its bone, mirrored for the other side of the body (26 numbers, meters).
An offset has a normal prior of mean 0, a keypoint the error of COCO's annotators; body and camera
are integrated out, so that an offset gets only what they cannot explain. The score is of people
whom the fit has not seen: the error of each keypoint, predicted from their other keypoints.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import idle_threads  # noqa: F401  before torch
import numpy as np
import torch
from torch import Tensor

from trunchier.conventions import COCO_17, COCO_17_FLIP, COCO_17_SIGMAS
from trunchier.geometry import SkinnedPoints, matrix_to_axis_angle
from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.fit import OUTLIER, SIGMA, KeypointFit
from trunchier.synthetic.keypoints import KeypointStream, size_of

LEAST = 8  # labeled keypoints of a person
AREA = 0.29  # of a person, of the squared diagonal of the keypoints' box: median of six photos
RESAMPLES = 2000


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('annotations', nargs='?', metavar='JSON', help='annotations in the format of COCO')
    add('--prior', type=float, default=2.0, help='deviation of offsets, cm (default: 2)')
    add('--simulate', type=int, metavar='N', help='people of the synthetic poses instead')
    add('--repeat', type=int, default=10, help='simulations (default: 10)')
    args = parser.parse_args(arguments)
    try:
        if (args.annotations is None) == (args.simulate is None):
            raise ValueError('give a file of annotations, or --simulate N')
        if args.prior <= 0 or args.repeat < 1 or (args.simulate or 2) < 2:
            raise ValueError('--prior above 0, --simulate 2 or more, --repeat 1 or more')
        if args.annotations:
            report(*read_people(args.annotations), args.prior / 100)
        else:
            simulate(args.simulate, args.repeat, args.prior / 100)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


def report(keypoints: Tensor, known: Tensor, area: Tensor, prior: float) -> None:
    """Print the offsets of some people, and what they change for people not seen."""
    fit = OffsetFit(prior)
    offsets, deviation = fit.offsets(*fit.evidence(keypoints, known, area))
    print(f'{len(known)} people, {int(known.sum())} keypoints, prior {100 * prior:g} cm\n')
    print('| offset, cm | left (x) | up (y) | front (z) | deviations |\n|---|---|---|---|---|')
    for kind, rows in enumerate(fit.kinds):
        values = ' | '.join(f'{100 * value:+.1f}' for value in offsets[rows[0]].tolist())
        spread = ', '.join(f'{100 * value:.1f}' for value in deviation[kind].tolist())
        print(f'| {COCO_17[rows[0]].removeprefix("left_")} | {values} | {spread} |')
    before, after = fit.held_out(keypoints, known, area)
    low, high = interval(after - before)
    print(
        f'\nerror of a keypoint of people not seen, % of sqrt(area): {100 * before.mean():.2f}, '
        f'with offsets {100 * after.mean():.2f}; difference {100 * (after - before).mean():+.2f} '
        f'[{100 * low:+.2f}, {100 * high:+.2f}] (95 % over people), smaller for '
        f'{int((after < before).sum())} of {len(before)}'
    )


def simulate(people: int, repeat: int, prior: float) -> None:
    """Print what is found of known offsets, drawn from the prior, by as many people."""
    slopes, changes, sure = [], [], 0
    for seed in range(repeat):
        fit = OffsetFit(prior)
        drawn = torch.Generator().manual_seed(seed)
        truth = fit.basis @ (prior * torch.randn(fit.basis.shape[2], generator=drawn))
        stream = KeypointStream(seed, 500, clean=True)
        stream.points = shifted(stream.points, truth)
        keypoints = stream.batch(people).keypoints
        area = AREA * size_of(keypoints)[:, 0, 0].square()
        noise = torch.randn(keypoints.shape, generator=drawn) * annotators(area)[..., None]
        known = torch.ones(people, len(COCO_17))
        keypoints = keypoints + noise
        found, _ = fit.offsets(*fit.evidence(keypoints, known, area))
        slopes.append(float((found * truth).sum() / truth.square().sum()))
        before, after = fit.held_out(keypoints, known, area)
        changes.append(float((after - before).mean() / before.mean()))
        sure += interval(after - before)[1] < 0
    print(
        f'{repeat} times {people} people with offsets of {100 * prior:g} cm: found '
        f'{100 * np.mean(slopes):.0f} % of them; error of keypoints of people not seen '
        f'{100 * np.mean(changes):+.1f} % (deviation {100 * np.std(changes):.1f}); smaller beyond '
        f'doubt in {sure} of {repeat}'
    )


class OffsetFit:
    """Offsets of keypoints in the frames of their bones, from people and their keypoints.

    Args:
        prior: deviation of an offset, meters.

    Attributes:
        kinds: indices of the keypoints that have an offset in common, left before right.
        basis: (17, 3, P), from parameters to offsets of keypoints.
    """

    def __init__(self, prior: float):
        self.prior, self.lifter, self.fit = prior, load_lifter(), KeypointFit()
        pairs = {tuple(sorted((i, j))) for i, j in enumerate(COCO_17_FLIP)}
        self.kinds = [tuple(dict.fromkeys(pair)) for pair in sorted(pairs)]
        columns = []
        for rows in self.kinds:
            for axis in range(3):
                column = torch.zeros(len(COCO_17), 3)
                column[list(rows), axis] = 1
                if axis == 0:  # to the left of the body; of the middle, nowhere
                    column[rows[-1], axis] = -1 if len(rows) == 2 else 0
                columns.append(column)
        self.basis = torch.stack(columns, 2)

    def evidence(self, keypoints: Tensor, known: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
        """Normal equations (N, P, P) and (N, P) of each person's offsets.

        Args:
            keypoints: (N, 17, 2), pixels. known: (N, 17), 1 or 0.
            area: (N,), of the people, pixels.
        """
        points, rotations, bodies, scores, change = self._fitted(keypoints, known, area)
        places, moves = points.jacobian(rotations, bodies['betas'])
        camera, size = bodies['camera'][:, None], extent(keypoints, known)
        pixels = camera[..., :1] * (places[..., :2] + camera[..., 1:])
        misses = (keypoints - pixels) / size
        trust = (scores.square() / SIGMA).square()
        trust = trust / (1 + trust * misses.square().sum(2) / OUTLIER**2).square()
        weights = trust.repeat_interleave(2, 1)[..., None].double()
        scale = (camera[..., :1] / size)[..., None]
        turned = bone_frames(points, rotations)
        columns = torch.einsum('nkcd,kdp->nkcp', turned, self.basis)[:, :, :2] * scale
        zoom = (pixels - pixels.mean(1, keepdim=True)) / size
        shifts = torch.eye(2).expand(*known.shape, 2, 2)
        hidden = torch.cat((moves[:, :, :2] * scale, zoom[..., None], shifts), 3).flatten(1, 2)
        columns, hidden = columns.flatten(1, 2).double(), hidden.double()
        precision = 1e-3 * torch.eye(hidden.shape[2]).double()
        body = slice(len(self.fit.precision))
        precision[body, body] = self.fit.precision.double()
        inner = hidden.transpose(1, 2) @ (weights * hidden) + precision
        across = hidden.transpose(1, 2) @ (weights * columns)
        normal = columns.transpose(1, 2) @ (weights * columns)
        normal = normal - across.transpose(1, 2) @ torch.linalg.solve(inner, across)
        weighted = weights * misses.flatten(1)[..., None].double()
        change = torch.nn.functional.pad(change, (0, 3)).double()[..., None]
        rest = hidden.transpose(1, 2) @ weighted - precision @ change  # 0 for the best body
        right = columns.transpose(1, 2) @ weighted
        right = right - across.transpose(1, 2) @ torch.linalg.solve(inner, rest)
        return normal, right[..., 0]

    def offsets(self, normal: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (17, 3) by the evidence of people, and deviations (9, 3), meters."""
        prior = torch.eye(normal.shape[1]).double() / self.prior**2
        covariance = torch.linalg.inv(normal.sum(0) + prior)
        found = (covariance @ right.sum(0)).float()
        return self.basis @ found, covariance.diagonal().sqrt().unflatten(0, (-1, 3))

    def held_out(self, keypoints: Tensor, known: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
        """Mean errors (N,) of keypoints by the others of a person, without and with offsets.

        Offsets are those of all other people; errors are in units of sqrt(area).
        """
        normal, right = self.evidence(keypoints, known, area)
        before = self._errors(keypoints, known, area, torch.zeros(len(COCO_17), 3))
        people = torch.arange(len(known))
        others = [self.offsets(normal[people != i], right[people != i])[0] for i in people]
        return before, self._errors(keypoints, known, area, torch.stack(others))

    def _errors(self, keypoints, known, area, offsets):
        errors = torch.zeros_like(known)
        for joint in range(len(COCO_17)):
            others = known.clone()
            others[:, joint] = 0
            points, rotations, bodies, *_ = self._fitted(keypoints, others, area, offsets)
            camera = bodies['camera']
            place = points(rotations, bodies['betas'])[1][:, joint, :2]
            pixels = camera[:, :1] * (place + camera[:, 1:])
            errors[:, joint] = (keypoints[:, joint] - pixels).norm(dim=1) / area.sqrt()
        return (errors * known).sum(1) / known.sum(1)

    def _fitted(self, keypoints, known, area, offsets=None):
        """Points with offsets, bodies whose points are at the keypoints, what the fit changed."""
        fit = copy.copy(self.fit)
        if offsets is not None:
            fit.points = shifted(self.fit.points, offsets)
        scores = known * (SIGMA * extent(keypoints, known)[..., 0] / annotators(area)).sqrt()
        plain = keypoints  # as the body has them, which the lifter knows
        for _ in range(1 if offsets is None else 2):
            lifted = self.lifter.lift(plain, known)
            bodies = fit(lifted, keypoints, scores)
            first, rotations = (
                torch.cat((each['global_orient'], each['body_pose']), 1)
                for each in (lifted, bodies)
            )
            if offsets is not None:
                moved = bone_frames(fit.points, rotations) @ offsets[..., None]
                plain = keypoints - bodies['camera'][:, None, :1] * moved[..., :2, 0]
        turns = matrix_to_axis_angle(first.transpose(2, 3) @ rotations).flatten(1)
        change = torch.cat((turns, bodies['betas'] - lifted['betas']), 1)
        return fit.points, rotations, bodies, scores, change


def bone_of(points: SkinnedPoints) -> Tensor:
    """The joint (17,) that moves most of each keypoint."""
    return points.mass[: len(COCO_17)].argmax(1)


def bone_frames(points: SkinnedPoints, rotations: Tensor) -> Tensor:
    """Rotations (N, 17, 3, 3) of the bones of keypoints in space."""
    world = []
    for joint, parent in enumerate(points.parents):
        world.append(rotations[:, joint] if joint == 0 else world[parent] @ rotations[:, joint])
    return torch.stack(world, 1)[:, bone_of(points)]


def shifted(points: SkinnedPoints, offsets: Tensor) -> SkinnedPoints:
    """The same points, COCO's moved by ([B,] 17, 3) meters in the frames of their bones."""
    moved = copy.copy(points)
    moved.offsets = points.offsets.expand(*offsets.shape[:-2], *points.offsets.shape).clone()
    moved.offsets[..., torch.arange(len(COCO_17)), bone_of(points), :] += offsets
    return moved


def annotators(area: Tensor) -> Tensor:
    """Deviations (N, 17) of annotated keypoints in each direction, pixels, of COCO's annotators."""
    return torch.tensor(COCO_17_SIGMAS) / 2**0.5 * area.sqrt()[:, None]


def extent(keypoints: Tensor, known: Tensor) -> Tensor:
    """Diagonal (N, 1, 1) of the box around known keypoints."""
    apart = known[..., None] > 0
    high = torch.where(apart, keypoints, -torch.inf).amax(1)
    low = torch.where(apart, keypoints, torch.inf).amin(1)
    return (high - low).norm(dim=1)[:, None, None]


def interval(values: Tensor) -> tuple[float, float]:
    """95 % of the mean over people, by a bootstrap."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values.numpy()[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)


def read_people(path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (N, 17, 2), known (N, 17) and area (N,) of people with LEAST keypoints or more.

    Raises:
        ValueError: the file has other content, or fewer than two such people.
    """
    try:
        people = json.loads(Path(path).read_text(encoding='utf-8'))['annotations']
        keypoints = torch.tensor([each['keypoints'] for each in people], dtype=torch.float32)
        keypoints = keypoints.reshape(len(people), len(COCO_17), 3)
        area = torch.tensor([each['area'] for each in people], dtype=torch.float32)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{path} has no keypoints and areas as of COCO: {error}') from None
    known = (keypoints[..., 2] > 0).float()
    rows = (known.sum(1) >= LEAST) & (area > 0) & keypoints.isfinite().flatten(1).all(1)
    if rows.sum() < 2:
        raise ValueError(f'{path}: {int(rows.sum())} people with {LEAST} keypoints; two are needed')
    return keypoints[rows, :, :2], known[rows], area[rows]


if __name__ == '__main__':
    main()
