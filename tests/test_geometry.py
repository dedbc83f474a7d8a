import math

import pytest
import torch
from golden_rule import golden_tensor as tensor
from golden_rule import load_golden

from trunchier.geometry import (
    align_similarity,
    axis_angle_to_matrix,
    camera_crop_to_full,
    camera_to_translation,
    coco_points,
    full_image_focal,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    perspective_projection,
    rotation_6d_to_matrix,
    similarity_transform,
)

GOLDEN = load_golden('hmr2_geometry')


def random_rotations(count, dtype=torch.float64):
    return rotation_6d_to_matrix(torch.randn(count, 6, dtype=dtype))


def is_rotation(matrix, tolerance):
    eye = torch.eye(3, dtype=matrix.dtype)
    orthogonal = torch.allclose(matrix.mT @ matrix, eye.expand_as(matrix), atol=tolerance)
    return orthogonal and torch.allclose(
        torch.linalg.det(matrix), torch.ones(matrix.shape[:-2], dtype=matrix.dtype), atol=tolerance
    )


# rotations


def test_6d_rotations_are_the_official_ones():
    record = GOLDEN['rot6d_to_rotmat']
    error = (rotation_6d_to_matrix(tensor(record['input'])) - tensor(record['output'])).abs()
    # Row 9: parallel vectors, so the second column is the direction of a rounding error.
    assert error[torch.arange(len(error)) != 9].max() < 1e-6
    assert error[9, :, 0].max() < 1e-6


def test_the_first_three_numbers_are_the_first_column():
    matrix = rotation_6d_to_matrix(torch.tensor([0.0, 2.0, 0.0, 0.0, 5.0, -3.0]))
    assert matrix.tolist() == [[0, 0, -1], [1, 0, 0], [0, -1, 0]]


def test_three_rows_are_crossed_row_by_row():
    x = torch.randn(3, 6)
    one_by_one = torch.stack([rotation_6d_to_matrix(row) for row in x])
    assert torch.equal(rotation_6d_to_matrix(x), one_by_one)


def test_6d_rotation_round_trip():
    matrix = random_rotations(50)
    back = rotation_6d_to_matrix(matrix_to_rotation_6d(matrix))
    assert torch.allclose(back, matrix, atol=1e-12)


def test_axis_angle_matrices_are_the_official_ones():
    record = GOLDEN['aa_to_rotmat']
    official = tensor(record['output'])
    ours = axis_angle_to_matrix(tensor(record['input']))
    defined = official.isfinite().all(-1).all(-1)
    assert defined.sum() == 13  # one official result is NaN
    assert (ours - official)[defined].abs().max() < 1e-6
    assert is_rotation(ours, 1e-6)


@pytest.mark.parametrize('angle', [0, 1e-9, 1e-4, 9.9e-3, 1.01e-2, 1, 3, math.pi, 4, 40])
def test_axis_angle_matrix_is_the_matrix_exponential(angle):
    axis = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    x, y, z = (angle * axis).tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    assert torch.allclose(
        axis_angle_to_matrix(angle * axis), torch.linalg.matrix_exp(generator), atol=1e-13
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(
    'angle', [0, 1e-8, 1e-5, 1e-3, 1e-2, 0.5, 2, 3.14, math.pi - 1e-3, math.pi - 1e-6, math.pi]
)
def test_axis_angle_round_trip(angle, dtype):
    axes = torch.nn.functional.normalize(torch.randn(100, 3, dtype=dtype), dim=-1)
    axes = torch.cat((axes, torch.eye(3, dtype=dtype), -torch.eye(3, dtype=dtype)))
    matrix = axis_angle_to_matrix(angle * axes)
    back = matrix_to_axis_angle(matrix)
    tolerance = 50 * torch.finfo(dtype).eps
    assert torch.allclose(axis_angle_to_matrix(back), matrix, atol=tolerance)
    if angle < math.pi - 1e-5:  # at pi the axis may point either way
        assert torch.allclose(back, angle * axes, atol=tolerance)


@pytest.mark.parametrize('size', [0, 1e-20, 1e-8, 9.99e-3, 1.01e-2, 1, 3])
def test_rotation_gradients_are_finite_and_correct(size):
    start = size * torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=-1)
    start.requires_grad_()
    assert torch.autograd.gradcheck(axis_angle_to_matrix, start)
    there_and_back = torch.autograd.functional.jacobian(
        lambda v: matrix_to_axis_angle(axis_angle_to_matrix(v)), start.detach()[0]
    )
    assert torch.allclose(there_and_back, torch.eye(3, dtype=torch.float64), atol=1e-6)


def test_zero_6d_rotation_has_a_finite_gradient():
    x = torch.zeros(2, 6, requires_grad=True)
    rotation_6d_to_matrix(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_rotations_are_computed_in_float32(dtype):
    two_columns = torch.eye(3)[:2].flatten() + 0.2 * torch.randn(5, 6)
    matrix = rotation_6d_to_matrix(two_columns.to(dtype))
    assert matrix.dtype == torch.float32
    assert is_rotation(matrix, 1e-6)


# cameras


@pytest.mark.parametrize('case', GOLDEN['perspective_projection'])
def test_projection_is_the_official_one(case):
    points, translation, focal = (
        tensor(case[name]) for name in ('points', 'translation', 'focal_length')
    )
    if 'rotation' in case:
        points = points @ tensor(case['rotation']).mT
    ours = perspective_projection(points, translation, focal)
    if 'camera_center' in case:
        ours = ours + tensor(case['camera_center'])[:, None]
    assert torch.allclose(ours, tensor(case['output']), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_crop_camera_is_the_official_one():
    case = GOLDEN['forward_step_camera']
    translation = camera_to_translation(tensor(case['pred_cam']))
    assert torch.allclose(translation, tensor(case['pred_cam_t']), rtol=1e-6)
    keypoints = perspective_projection(
        tensor(case['pred_keypoints_3d']), translation, tensor(case['focal_length']) / 256
    )
    assert torch.allclose(keypoints, tensor(case['pred_keypoints_2d']), atol=1e-6)


def test_a_crop_of_the_whole_image_has_the_camera_of_the_image():
    camera = torch.tensor([[0.9, 0.1, -0.2]])
    size = torch.tensor([[512.0, 512.0]])
    focal = full_image_focal(size)
    assert focal.item() == 10000
    full = camera_crop_to_full(camera, size / 2, torch.tensor([512.0]), size, focal)
    assert torch.allclose(full, camera_to_translation(camera))


def test_the_full_camera_projects_like_the_crop_camera():
    """To first order: the body's own depth (0.3 m of 40) changes the perspective a little."""
    camera = torch.tensor([[0.8, 0.3, -0.1]])
    center, box, size = torch.tensor([[700.0, 200.0]]), 180.0, torch.tensor([[1280.0, 720.0]])
    point = torch.zeros(1, 1, 3)
    crop = perspective_projection(
        point, camera_to_translation(camera), torch.full((1, 2), 5000 / 256)
    )
    in_image = center + box * crop[:, 0]

    focal = full_image_focal(size)
    full = camera_crop_to_full(camera, center, torch.tensor([box]), size, focal)
    direct = perspective_projection(point, full, focal[:, None].expand(1, 2))[:, 0]
    assert torch.allclose(in_image, size / 2 + direct, atol=1e-3)


# alignment


def similar(points, scale, rotation, translation):
    return scale * points @ rotation.mT + translation


@pytest.mark.parametrize('scale', [1e-3, 1, 50])
def test_alignment_undoes_any_similarity(scale):
    points = torch.randn(20, 14, 3, dtype=torch.float64)
    moved = similar(points, scale, random_rotations(20), 10 * torch.randn(20, 1, 3))
    assert torch.allclose(align_similarity(moved, points), points, atol=1e-10)


def test_alignment_does_not_mirror():
    points = torch.randn(20, 14, 3, dtype=torch.float64)
    mirrored = points * torch.tensor([-1, 1, 1])
    _, rotation, _ = similarity_transform(mirrored, points)
    assert is_rotation(rotation, 1e-12)
    assert (align_similarity(mirrored, points) - points).norm(dim=-1).mean(1).min() > 0.1


def test_alignment_beats_every_similarity_nearby():
    source, target = torch.randn(2, 1, 14, 3, dtype=torch.float64)
    best = (align_similarity(source, target) - target).square().sum()
    scale, rotation, translation = similarity_transform(source, target)
    for _ in range(200):
        nudge = axis_angle_to_matrix(0.05 * torch.randn(3, dtype=torch.float64))
        other = similar(
            source,
            scale * (1 + 0.05 * torch.randn(())),
            rotation @ nudge,
            translation + 0.05 * torch.randn(3),
        )
        assert (other - target).square().sum() >= best


LINE = torch.arange(14.0)[:, None] * torch.tensor([1.0, 2.0, 3.0])
PLANE = torch.randn(14, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 1, 0])


@pytest.mark.parametrize(
    ('source', 'target'),
    [
        (torch.ones(14, 3), torch.randn(14, 3)),
        (torch.randn(14, 3), torch.ones(14, 3)),
        (torch.zeros(14, 3), torch.zeros(14, 3)),
        (LINE, torch.randn(14, 3)),
        (LINE, LINE.flip(0)),
        (PLANE, PLANE.roll(1, 0)),
    ],
    ids=['point', 'to point', 'zeros', 'line', 'line to line', 'plane'],
)
def test_degenerate_points_align_no_worse_than_the_mean(source, target):
    aligned = align_similarity(source[None], target[None])[0]
    assert aligned.isfinite().all()
    at_mean = (target.double() - target.double().mean(0)).square().sum()
    assert (aligned - target).square().sum() <= at_mean + 1e-9


def test_points_of_a_body_move_as_their_derivatives_say():
    """By turns of the joints in their own frames and by betas; against automatic ones."""
    torch.manual_seed(0)
    points = coco_points()
    rotations, betas = axis_angle_to_matrix(torch.randn(2, 24, 3)), torch.randn(2, 10)

    def moved(turns, change):
        return points(rotations @ axis_angle_to_matrix(turns), betas + change)[1].sum(0)

    places, derivatives = points.jacobian(rotations, betas)
    torch.testing.assert_close(places, points(rotations, betas)[1])
    zeros = torch.zeros(2, 24, 3), torch.zeros(2, 10)
    by_turns, by_betas = torch.autograd.functional.jacobian(moved, zeros)
    expected = torch.cat((by_turns.flatten(3), by_betas), 3).permute(2, 0, 1, 3)
    torch.testing.assert_close(derivatives, expected, atol=1e-5, rtol=1e-4)
