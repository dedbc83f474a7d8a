import cv2
import numpy as np
import people
import pytest
from golden_rule import golden_tensor, load_golden

from trunchier.datasets import AugmentPerson, CropPerson, crops

EXAMPLES = load_golden('hmr2_get_example')['get_example']
DATASETS = load_golden('hmr2_datasets')


def array(record):
    return golden_tensor(record).numpy()


def augmentation_of(example):
    drawn = example['augmentation']
    if isinstance(drawn, str):
        return crops.Augmentation()
    return crops.Augmentation(
        scale=drawn['scale'],
        rotation=drawn['rot'],
        mirror=drawn['do_flip'],
        color=tuple(drawn['color_scale']),
        shift=(drawn['tx'], drawn['ty']),
    )


def matrix_of(example):
    augmentation, (_, width) = augmentation_of(example), example['outputs']['img_size']
    center = np.array([example['center_x'], example['center_y']])
    center += example['width'] * np.array(augmentation.shift)
    if augmentation.mirror:
        center[0] = width - 1 - center[0]
    side = example['width'] * augmentation.scale
    return crops.crop_matrix(center, side, 256, augmentation.rotation), side


def gray_errors(crop_bgr, record):
    """Errors of the golden samples in gray levels; the record is normalized RGB."""
    index = np.linspace(0, 3 * 256 * 256 - 1, 256).astype(np.int64)
    mean, std = 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    channel = index // (256 * 256)
    official = np.array(record['samples']) * std[channel] + mean[channel]
    ours = crop_bgr[:, :, ::-1].transpose(2, 0, 1).reshape(-1)[index]
    return np.abs(ours - official)


@pytest.mark.parametrize('example', EXAMPLES)
def test_crop_matrix_is_the_official_one(example):
    matrix, _ = matrix_of(example)
    np.testing.assert_allclose(matrix, array(example['outputs']['trans']), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('example', EXAMPLES)
def test_pixels_are_the_official_ones_within_one_gray_level(example, shared):
    image = cv2.imread(str(shared / 'golden' / example['image']))
    augmentation, (matrix, side) = augmentation_of(example), matrix_of(example)
    border = example['border_mode'].split()[0]
    blur = example['use_skimage_antialias']
    sigma = crops.blur_sigma(side, official=True) if blur else 0
    crop = crops.warp(
        image, matrix, mirror=augmentation.mirror, border=border, sigma=sigma, truncate=3
    )
    record = example['outputs']['img']
    exact = crops.scale_colors(crop, augmentation.color[::-1])
    assert gray_errors(exact, record).max() < 1e-3
    if not blur:
        rounded = crops.scale_colors_uint8(crop, augmentation.color[::-1])
        assert gray_errors(rounded, record).max() < 0.501


@pytest.mark.parametrize('example', EXAMPLES)
def test_transformed_annotations_are_the_official_ones(example):
    augmentation, (matrix, _) = augmentation_of(example), matrix_of(example)
    outputs, mirror = example['outputs'], augmentation.mirror
    points = array(example['keypoints_2d_in'])
    if mirror:
        points = crops.flip_keypoints(points, outputs['img_size'][1])
    points[:, :2] = crops.transform_points(points[:, :2].astype(np.float64), matrix) / 256 - 0.5
    np.testing.assert_allclose(points, array(outputs['keypoints_2d']), atol=2e-6)

    joints = crops.rotate_joints(array(example['keypoints_3d_in']), augmentation.rotation, mirror)
    np.testing.assert_allclose(joints, array(outputs['keypoints_3d']), atol=1e-6)

    pose = np.concatenate([array(example['smpl_in'][k]) for k in ('global_orient', 'body_pose')])
    official = np.concatenate([array(outputs['smpl'][k]) for k in ('global_orient', 'body_pose')])
    pose = crops.rotate_pose(pose, augmentation.rotation, mirror)
    np.testing.assert_allclose(pose, official, atol=1e-6)


@pytest.mark.parametrize('example', DATASETS['vitdet_dataset'])
def test_demo_crop_is_the_official_one(example, shared):
    image = cv2.imread(str(shared / 'golden' / example['image']))
    box = np.float32(example['box_x1y1x2y2'])
    center, side = (box[2:] + box[:2]) / 2, crops.expand_to_aspect(box[2:] - box[:2], (3, 4)).max()
    sigma = crops.blur_sigma(side / 2)  # the demo counts half the reduction
    crop = crops.warp(image, crops.crop_matrix(center, side), sigma=sigma)
    np.testing.assert_allclose(center, array(example['box_center']))
    assert side == example['box_size']
    assert gray_errors(crop, example['img']).max() < 1e-2


@pytest.mark.parametrize('example', DATASETS['vitdet_dataset'])
def test_the_crop_of_prediction_is_that_of_the_official_demo(example, shared):
    image = cv2.imread(str(shared / 'golden' / example['image']))
    box = np.float64(example['box_x1y1x2y2'])
    record = dict(image=image, center=(box[2:] + box[:2]) / 2, scale=(box[2:] - box[:2]) / 200)
    found = CropPerson(aspect=(192, 256), antialias='demo')(record)
    assert found['input_side'] == pytest.approx(example['box_size'])
    assert gray_errors(found['crop'], example['img']).max() < 0.51  # rounded


@pytest.mark.parametrize('case', DATASETS['expand_to_aspect_ratio'])
def test_expanded_boxes_are_the_official_ones(case):
    expanded = crops.expand_to_aspect(case['input'], case['target'])
    np.testing.assert_allclose(expanded, case['output'], rtol=1e-12)


PART_NAMES = {
    'crop_to_hips': 'hips', 'crop_to_shoulders': 'shoulders', 'crop_to_head': 'head',
    'crop_torso_only': 'torso', 'crop_rightarm_only': 'right_arm',
    'crop_leftarm_only': 'left_arm', 'crop_legs_only': 'legs',
    'crop_rightleg_only': 'right_leg', 'crop_leftleg_only': 'left_leg',
}  # fmt: skip


@pytest.mark.parametrize('case', DATASETS['extreme_crops'])
def test_body_part_boxes_are_the_official_ones(case):
    keypoints, box = array(case['keypoints_2d']), case['box']
    assert (crops.visible_extent(keypoints) == 'full') == case['full_body']
    assert (crops.visible_extent(keypoints) == 'upper') == case['upper_body']
    for name, official in case['results'].items():
        center, size = crops.body_part_box(keypoints, PART_NAMES[name], box[:2], box[2:])
        np.testing.assert_allclose([*center, *size], official, rtol=1e-6)


@pytest.mark.parametrize('case', DATASETS['extreme_crops'])
@pytest.mark.parametrize(
    ('level', 'name'), [('mild', 'extreme_cropping'), ('aggressive', 'extreme_cropping_aggressive')]
)
def test_picked_body_parts_are_the_official_ones(case, level, name):
    keypoints, box = array(case['keypoints_2d']), case['box']
    for chance, official in case[name].items():
        part = crops.pick_body_part(keypoints, float(chance), level)
        center, size = box[:2], np.array(box[2:])
        if part is not None:
            center, size = crops.body_part_box(keypoints, part, center, size)
        np.testing.assert_allclose([*center, size.max(), size.max()], official, rtol=1e-6)


def test_an_invisible_body_part_returns_the_given_box():
    keypoints = np.zeros((44, 3), np.float32)
    for part in crops.BODY_PARTS:
        center, size = crops.body_part_box(keypoints, part, (5, 6), (7, 8))
        assert (*center, *size) == (5, 6, 7, 8)


def ramp_by_hand(center, side, rotation, mirror, width=128):
    """B, G, R of `people.ramp` at the source coordinates of the crop's pixels."""
    v, u = np.mgrid[:256, :256]
    right, down = (u - 128) / 256 * side, (v - 128) / 256 * side
    turn = np.deg2rad(rotation)
    x = center[0] + right * np.cos(turn) - down * np.sin(turn)
    y = center[1] + right * np.sin(turn) + down * np.cos(turn)
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < 95)
    if mirror:
        x = width - 1 - x
    return np.stack([2 * x, 2 * y, x + y], axis=-1), inside


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize(
    ('center', 'side', 'rotation'),
    [((64, 48), 40.0, 0), ((50.5, 40.25), 61.7, 30), ((20, 90), 150.0, -47), ((2.5, 3.5), 9, 12)],
)
def test_the_crop_of_a_ramp_equals_one_by_hand(center, side, rotation, mirror):
    matrix = crops.crop_matrix(center, side, 256, rotation)
    crop = crops.warp(people.ramp(), matrix, mirror=mirror)
    wanted, inside = ramp_by_hand(center, side, rotation, mirror)
    assert inside.sum() > 10_000
    assert np.abs(crop.astype(float) - wanted)[inside].max() < 1
    v, u = np.mgrid[:256, :256]
    points = np.stack([u, v], axis=-1).reshape(-1, 2)
    back = crops.transform_points(points, cv2.invertAffineTransform(matrix)).reshape(256, 256, 2)
    outside = (back < -1).any(-1) | (back > (128, 96)).any(-1)
    assert crop[outside].sum() == 0


@pytest.mark.parametrize('border', ['constant', 'replicate'])
@pytest.mark.parametrize('mirror', [False, True])
def test_reading_only_a_part_of_the_image_changes_nothing(border, mirror):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (200, 300, 3), np.uint8)
    whole = image[:, ::-1].copy() if mirror else image
    mode = {'constant': cv2.BORDER_CONSTANT, 'replicate': cv2.BORDER_REPLICATE}[border]
    for _ in range(20):
        center, side = rng.uniform(-50, 350, 2), rng.uniform(20, 500)
        matrix = crops.crop_matrix(center, side, 256, rng.uniform(-60, 60))
        crop = crops.warp(image, matrix, mirror=mirror, border=border)
        wanted = cv2.warpAffine(whole, matrix, (256, 256), borderMode=mode)
        differs = np.abs(crop.astype(int) - wanted).max(-1)
        # OpenCV rounds coordinates to 1/32 pixel; a last bit may fall the other way.
        assert (differs > 1).mean() < 1e-3


def test_mirroring_twice_is_the_identity():
    data = people.annotation(3)
    points = crops.flip_keypoints(crops.flip_keypoints(data['keypoints_2d'], 128), 128)
    np.testing.assert_allclose(points, data['keypoints_2d'], atol=1e-4)
    joints = crops.rotate_joints(crops.rotate_joints(data['keypoints_3d'], 0, True), 0, True)
    np.testing.assert_allclose(joints, data['keypoints_3d'], atol=1e-6)
    pose = crops.rotate_pose(crops.rotate_pose(data['body_pose'], 0, True), 0, True)
    np.testing.assert_allclose(pose, data['body_pose'], atol=1e-6)


def test_rotating_there_and_back_is_the_identity():
    data = people.annotation(4)
    joints = crops.rotate_joints(crops.rotate_joints(data['keypoints_3d'], 25, False), -25, False)
    np.testing.assert_allclose(joints, data['keypoints_3d'], atol=1e-6)
    pose = crops.rotate_pose(crops.rotate_pose(data['body_pose'], 25, False), -25, False)
    np.testing.assert_allclose(pose, data['body_pose'], atol=1e-6)


def test_inputs_are_not_modified():
    data = people.annotation(5)
    before = {name: np.array(value) for name, value in data.items() if name != 'extra_info'}
    crops.flip_keypoints(data['keypoints_2d'], 128)
    crops.rotate_joints(data['keypoints_3d'], 10, True)
    crops.rotate_pose(data['body_pose'], 10, True)
    crops.body_part_box(data['keypoints_2d'], 'head', data['center'], data['scale'])
    for name, value in before.items():
        np.testing.assert_array_equal(data[name], value)


def test_reduced_crops_are_blurred_and_officially_enlarged_ones():
    assert crops.blur_sigma(512) == 0.5
    assert crops.blur_sigma(128) == 0
    assert crops.blur_sigma(512, official=True) == 0
    assert crops.blur_sigma(128, official=True) == 0.5


def test_augmentation_is_drawn_from_the_official_distributions():
    augment, rng = AugmentPerson(part_rate=0), np.random.default_rng(0)
    drawn = [augment({'rng': rng})['augmentation'] for _ in range(20_000)]
    scales = np.array([a.scale for a in drawn])
    rotations = np.array([a.rotation for a in drawn])
    shifts = np.array([a.shift for a in drawn])
    colors = np.array([a.color for a in drawn])
    assert scales.min() == 0.7 and scales.max() == pytest.approx(1.3)
    # P(|N| > 1) = 0.3173, P(|N| > 2) = 0.0455
    assert (scales == scales.min()).mean() == pytest.approx(0.3173 / 2, abs=0.01)
    assert (rotations == 0).mean() == pytest.approx(0.4, abs=0.01)
    assert np.abs(rotations).max() == 60
    assert (np.abs(rotations) == 60).mean() == pytest.approx(0.6 * 0.0455, abs=0.005)
    assert np.abs(shifts).max() == 0.02
    assert np.mean([a.mirror for a in drawn]) == pytest.approx(0.5, abs=0.01)
    assert colors.min() > 0.8 and colors.max() < 1.2
    assert colors.std() == pytest.approx(0.4 / 12**0.5, rel=0.02)
