import numpy as np
import people
import pytest

from trunchier.conventions import ON_DISK
from trunchier.datasets import annotations
from trunchier.datasets.annotations import AnnotationFilter, BadRecord, check_annotation


def checked(**changes):
    return check_annotation(people.annotation(**changes))


def test_a_good_annotation_passes_unchanged():
    data = people.annotation()
    clean = check_annotation(data)
    for name, (shape, dtype) in annotations.FORM.items():
        assert clean[name].shape == shape and clean[name].dtype == dtype
        np.testing.assert_array_equal(clean[name], np.array(data[ON_DISK.get(name, name)], dtype))


def test_arrays_are_copied():
    data = people.annotation()
    check_annotation(data)['keypoints_2d'][:] = 0
    assert (data['keypoints_2d'][:, 2] == 1).all()


def test_a_scalar_scale_is_a_square_box():
    for scale in (0.5, np.array([0.5]), np.array(0.5)):
        np.testing.assert_allclose(checked(scale=scale)['scale'], [0.5, 0.5])


def test_only_keypoints_and_the_box_are_required():
    data = people.annotation()
    clean = check_annotation({name: data[name] for name in annotations.REQUIRED})
    assert clean['has_pose'] == clean['has_betas'] == 0
    assert clean['keypoints_3d'].shape == (44, 4)


@pytest.mark.parametrize(
    ('changes', 'kind', 'message'),
    [
        (dict(keypoints_2d=np.zeros((43, 3))), 'malformed annotation', r'keypoints_2d.*\(43, 3\)'),
        (dict(body_pose=np.zeros(69)), 'malformed annotation', r'body_pose.*\(69,\)'),
        (dict(betas=np.full(10, np.nan)), 'malformed annotation', 'betas holds NaN'),
        (dict(body_pose=np.full(72, np.inf)), 'malformed annotation', 'body_pose holds NaN, inf'),
        (dict(betas='thin'), 'malformed annotation', 'betas is not an array'),
        (dict(center=np.zeros(3)), 'malformed annotation', 'center has shape'),
        (dict(scale=np.zeros(2)), 'zero-size box', '1 pixel or more'),
        (dict(scale=np.array([-1.0, 2.0])), 'zero-size box', '1 pixel or more'),
        (dict(scale=np.array([0.0, 0.004])), 'zero-size box', '1 pixel or more'),
    ],
)
def test_errors_name_the_bad_field(changes, kind, message):
    with pytest.raises(BadRecord, match=message) as error:
        checked(**changes)
    assert error.value.kind == kind


@pytest.mark.parametrize('name', ['keypoints_2d', 'center', 'scale'])
def test_a_missing_field_is_named(name):
    data = people.annotation()
    del data[name]
    with pytest.raises(BadRecord, match=f'{name} is missing; found'):
        check_annotation(data)


def test_nan_is_accepted_only_where_the_confidence_is_zero():
    keypoints = people.annotation()['keypoints_2d']
    keypoints[3] = (np.nan, np.nan, 0)
    np.testing.assert_array_equal(checked(keypoints_2d=keypoints)['keypoints_2d'][3], 0)
    keypoints[3, 2] = 0.5
    with pytest.raises(BadRecord, match='keypoints_2d holds NaN'):
        checked(keypoints_2d=keypoints)


def test_weak_keypoints_lose_their_confidence():
    data = checked()
    data['keypoints_2d'][:3, 2] = (0.29, 0.3, 0.31)
    assert AnnotationFilter()(data) is None
    np.testing.assert_allclose(data['keypoints_2d'][:3, 2], [0, 0.3, 0.31])


def test_betas_out_of_range_remove_the_pose_too():
    betas = np.zeros(10)
    betas[4] = -3.01
    data = checked(betas=betas)
    AnnotationFilter(regularize_betas=False)(data)
    assert data['has_betas'] == data['has_pose'] == 0


def test_betas_at_the_limit_are_kept():
    data = checked(betas=np.full(10, 3.0))
    AnnotationFilter()(data)
    assert data['has_betas'] == data['has_pose'] == 1


def test_missing_betas_are_regularized_to_zero():
    data = checked(has_body_pose=0.0)
    AnnotationFilter()(data)
    assert data['has_betas'] == 1 and data['has_pose'] == 0
    assert (data['betas'] == 0).all()


@pytest.mark.parametrize(('seen', 'reason'), [(4, 'few keypoints'), (5, None)])
def test_more_than_four_keypoints_are_required(seen, reason):
    data = checked()
    data['keypoints_2d'][seen:, 2] = 0.1
    assert AnnotationFilter()(data) == reason


@pytest.mark.parametrize(
    ('losses', 'reason'),
    [
        ({'reprojection_loss': 31000.0}, 'fitting loss'),
        ({'reprojection_loss': 30999.0}, None),
        ({'reprojection_loss': None}, None),
        ({}, None),
    ],
)
def test_bad_fits_are_dropped(losses, reason):
    data = checked(extra_info={'fitting_loss': np.array(losses, dtype=object)})
    assert AnnotationFilter()(data) == reason


def test_annotations_without_extra_info_pass():
    data = people.annotation()
    del data['extra_info']
    assert AnnotationFilter()(check_annotation(data)) is None


@pytest.fixture
def histogram(tmp_path):
    """A pose histogram in which only rotations near zero have been seen."""
    counts = np.zeros((21, 40, 40, 40))
    counts[:, 19:21, 19:21, 19:21] = 1000
    path = tmp_path / 'histogram.npy'
    np.save(path, counts)
    return path


def test_improbable_poses_are_removed(histogram):
    filter = AnnotationFilter(pose_histogram=histogram, regularize_betas=False)
    usual = checked(body_pose=np.full(72, 0.05))
    assert filter(usual) is None
    assert usual['has_pose'] == usual['has_betas'] == 1
    pose = np.full(72, 0.05)
    pose[3 + 3 * 17] = 3.0  # left elbow
    odd = checked(body_pose=pose)
    filter(odd)
    assert odd['has_pose'] == odd['has_betas'] == 0


def test_global_orient_and_hands_are_not_tested(histogram):
    pose = np.full(72, 0.05)
    pose[:3] = (3, 0, 0)
    pose[-6:] = 2.0
    data = checked(body_pose=pose)
    AnnotationFilter(pose_histogram=histogram)(data)
    assert data['has_pose'] == 1


def test_a_full_turn_more_is_the_same_pose(histogram):
    probable = annotations.load_probable_poses(histogram)
    pose = np.full((23, 3), 0.05)
    assert annotations.is_probable(pose, probable)
    angle = np.linalg.norm(pose, axis=1, keepdims=True)
    for turns in (1, 2, -1):
        turned = pose * (angle + 2 * np.pi * turns) / angle
        assert annotations.is_probable(turned, probable)


def test_density_is_smoothed_by_two_bins_in_all_axes(histogram):
    probable = annotations.load_probable_poses(histogram)
    # Gaussian of sigma 2 along each axis by hand, at the middle joint (10) in bin (19, 19, 19).
    offsets = np.arange(-8, 9)
    weights = np.exp(-(offsets**2) / 8.0)
    weights /= weights.sum()
    two_bins = weights[8] + weights[9]
    density = two_bins**3 / (21 * 8 * (2 * np.pi / 40) ** 3)
    assert density > max(annotations.POSE_THRESHOLDS)
    assert probable[10, 19, 19, 19]
    # Four bins off along x: likewise, against the threshold of joint 8 (spine3), 0.025.
    off = (weights[8 + 4] + weights[8 + 5]) * two_bins**2 / (21 * 8 * (2 * np.pi / 40) ** 3)
    assert probable[8, 24, 19, 19] == (off > 0.025)
    assert probable[3, 24, 19, 19] == (off > 5e-6)
    assert (off > 0.025) != (off > 5e-6)


def test_a_missing_histogram_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match='hmr2_training_data.*pose_histogram=None'):
        AnnotationFilter(pose_histogram=tmp_path / 'none.npy').load()


def test_a_histogram_of_another_shape_is_an_error(tmp_path):
    np.save(tmp_path / 'h.npy', np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r'expected shape \(21, n, n, n\), got \(3, 4\)'):
        annotations.load_probable_poses(tmp_path / 'h.npy')


def test_too_many_bad_records_are_an_error():
    count = annotations.BadCount('set', max_share=0.1, patience=20)
    for _ in range(19):
        count.add_good()
    count.add_bad('undecodable image', 'a', 'why')
    count.add_bad('undecodable image', 'b', 'why')
    with pytest.raises(
        RuntimeError, match=r'set: 3 of 22 records are bad \(1 zero-size box, 2 und'
    ):
        count.add_bad('zero-size box', 'c', 'why')


def test_the_share_is_not_checked_before_patience_is_over():
    count = annotations.BadCount('set', max_share=0.1, patience=20)
    for number in range(5):
        count.add_bad('undecodable image', str(number), 'why')
    assert count.bad == {'undecodable image': 5} and count.good == 0
