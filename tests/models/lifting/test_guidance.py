"""Energies against loops, where they are zero, their slopes, and tracks that they smooth."""

import itertools

import numpy as np
import pytest
import torch

from trunchier.conventions import H36M_17_FLIP, H36M_17_PARENTS
from trunchier.models.lifting.guidance import PhysicalGuidance, View, motion_energy, smooth

WEIGHTS = dict(reprojection=1.5, symmetry=2.0, bone_variance=0.3, motion=0.7)
JOINTS = torch.randn(2, 5, 17, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROOT = torch.tensor([0.2, -0.1, 4.0], dtype=torch.float64).expand(2, 5, 3)


def view_of(joints, root=ROOT, shift=0.0):
    """A camera that sees keypoints `shift` beside the joints."""
    batch = len(joints)
    focal, center = joints.new_tensor([1.1, 1.2]), joints.new_tensor([0.01, -0.02])
    points = joints + root[:, :, None]
    keypoints = points[..., :2] / points[..., 2:] * focal + center + shift
    return View(keypoints, focal.expand(batch, 2), center.expand(batch, 2), root)


def still_and_symmetric():
    """One pose of a person, all frames alike, whose left mirrors the right."""
    pose = torch.randn(17, 3, dtype=torch.float64)
    mirror = torch.tensor([-1.0, 1, 1])
    return ((pose + pose[list(H36M_17_FLIP)] * mirror) / 2).expand(2, 5, 17, 3).clone()


def test_terms_are_those_of_loops():
    weights = np.arange(1, 18) / 10
    guidance = PhysicalGuidance(**WEIGHTS, joint_weights=weights.tolist())
    view = view_of(JOINTS, shift=0.03)
    found = guidance.terms(JOINTS, view)
    for b in range(2):
        track = JOINTS[b].numpy()
        bones = [(j, p) for j, p in enumerate(H36M_17_PARENTS) if p >= 0]
        length = {
            (t, j): np.linalg.norm(track[t, j] - track[t, p])
            for t, (j, p) in itertools.product(range(5), bones)
        }
        pairs = [(j, H36M_17_FLIP[j]) for j, _ in bones if j < H36M_17_FLIP[j]]
        assert len(pairs) == 6
        uneven = [(length[t, a] - length[t, b]) ** 2 for t in range(5) for a, b in pairs]
        spread = [np.var([length[t, j] for t in range(5)]) for j, _ in bones]
        steps = [
            weights[j] * ((track[t, j] - track[t - 1, j]) ** 2).sum()
            for t in range(1, 5)
            for j in range(17)
        ]
        wanted = dict(
            symmetry=2.0 * np.mean(uneven),
            bone_variance=0.3 * np.mean(spread),
            motion=0.7 * np.mean(steps),
            reprojection=1.5 * 2 * 0.03**2,
        )
        for name, value in wanted.items():
            assert float(found[name][b]) == pytest.approx(value, rel=1e-6), name


def test_a_rigid_symmetric_still_pose_that_projects_right_has_no_energy():
    joints = still_and_symmetric()
    terms = PhysicalGuidance().terms(joints, view_of(joints))
    assert sorted(terms) == ['bone_variance', 'motion', 'reprojection', 'symmetry']
    assert all(float(term.abs().max()) < 1e-20 for term in terms.values())


def test_slopes_are_finite_differences():
    guidance, view = PhysicalGuidance(**WEIGHTS), view_of(JOINTS, shift=0.05)
    given = JOINTS.clone().requires_grad_()
    guidance(given, view).sum().backward()
    for place in [(0, 0, 3, 0), (1, 2, 16, 2), (0, 4, 0, 1)]:
        ahead, behind = JOINTS.clone(), JOINTS.clone()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        slope = (guidance(ahead, view) - guidance(behind, view)).sum() / 2e-5
        assert float(given.grad[place]) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize('term', [*WEIGHTS, 'all'])
def test_a_small_step_never_raises_the_energy(term):
    weights = WEIGHTS if term == 'all' else {**dict.fromkeys(WEIGHTS, 0.0), term: 1.0}
    guidance = PhysicalGuidance(**weights)
    for seed in range(5):
        joints = torch.randn(1, 6, 17, 3, generator=torch.Generator().manual_seed(seed)) * 0.5
        view = view_of(joints, ROOT[:1, :1].float().expand(1, 6, 3), shift=0.1)
        joints.requires_grad_()
        energy = guidance(joints, view)
        (slope,) = torch.autograd.grad(energy.sum(), joints)
        assert guidance(joints - 0.02 * slope, view) <= energy


def test_a_joint_on_its_parent_has_finite_slopes():
    joints = torch.zeros(1, 3, 17, 3, requires_grad=True)
    PhysicalGuidance()(joints).sum().backward()
    assert torch.isfinite(joints.grad).all()


@pytest.mark.parametrize('dimensions', [2, 3])
def test_smoothing_takes_noise_from_a_track(dimensions):
    torch.manual_seed(0)
    time = torch.linspace(0, 3, 40)[:, None, None]
    truth = torch.sin(time + torch.rand(17, dimensions) * 6).expand(2, -1, -1, -1)
    noisy = truth + 0.05 * torch.randn_like(truth)
    found = smooth(noisy, motion_energy(weight=20.0))

    def errors(track, order):
        return (track - truth).diff(n=order, dim=1).norm(dim=-1).mean()

    assert errors(found, 2) < 0.3 * errors(noisy, 2)
    assert (found - truth).norm() < 0.8 * (noisy - truth).norm()


def test_smoothing_never_raises_the_energy_and_leaves_a_still_track():
    energy, noisy = PhysicalGuidance(**WEIGHTS), JOINTS
    before = energy(noisy)
    for steps in (1, 3, 10):
        after = energy(smooth(noisy, energy, steps=steps, rate=10.0))
        assert (after <= before).all()
    still = still_and_symmetric()
    assert torch.allclose(smooth(still, energy), still, atol=1e-9)
