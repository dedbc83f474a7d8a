import cv2
import numpy as np
import people
import pytest
import torch
from golden_rule import golden_tensor, load_golden
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from trunchier.conventions import TARGETS, person
from trunchier.datasets import AddRealPoses, AugmentPerson, CropPerson, crops
from trunchier.datasets.annotations import check_annotation
from trunchier.datasets.transforms import load_real_poses


def record(image=None, seed=0, **changes):
    return dict(
        check_annotation(people.annotation(**changes)),
        image=people.ramp() if image is None else image,
        key='k',
        dataset='set',
        img_path='somewhere/k.jpg',
        id=7,
        rng=np.random.default_rng(seed),
    )


def examples():
    return load_golden('hmr2_get_example')['get_example']


@pytest.mark.parametrize('example', examples())
def test_the_pipeline_equals_get_example(example, shared):
    def array(record):
        return golden_tensor(record).numpy()

    drawn = example['augmentation']
    augmentation = crops.Augmentation()
    if not isinstance(drawn, str):
        augmentation = crops.Augmentation(
            scale=drawn['scale'],
            rotation=drawn['rot'],
            mirror=drawn['do_flip'],
            color=tuple(drawn['color_scale']),
            shift=(drawn['tx'], drawn['ty']),
        )
    smpl = example['smpl_in']
    given = record(
        image=cv2.imread(str(shared / 'golden' / example['image'])),
        keypoints_2d=array(example['keypoints_2d_in']),
        keypoints_3d=array(example['keypoints_3d_in']),
        center=np.array([example['center_x'], example['center_y']]),
        scale=np.array([example['width'], example['height']]) / 200,
        body_pose=np.concatenate([array(smpl['global_orient']), array(smpl['body_pose'])]),
        betas=array(smpl['betas']),
    )
    given['augmentation'] = augmentation
    crop = CropPerson(
        border=example['border_mode'].split()[0],
        antialias=example['use_skimage_antialias'],
        official=True,
    )
    packed = Compose([crop, dict(type='PackPerson')])(given)

    official, instances = example['outputs'], packed['data_samples'].gt_instances
    image = packed['inputs'].flip(0).double()
    image = (image - MEAN) / STD
    index = np.linspace(0, image.numel() - 1, 256).astype(np.int64)
    samples = torch.tensor(official['img']['samples'], dtype=torch.float64)
    assert (image.flatten()[index] - samples).abs().max() < 1e-5
    means = torch.tensor(official['img_channel_means'], dtype=torch.float64)
    assert (image.mean((1, 2)) - means).abs().max() < 1e-3  # there in float32
    for name, key in (('crop_keypoints_2d', 'keypoints_2d'), ('keypoints_3d', 'keypoints_3d')):
        np.testing.assert_allclose(instances.get(name)[0], array(official[key]), atol=2e-6)
    smpl = {name: array(value) for name, value in official['smpl'].items()}
    pose = np.concatenate([smpl['global_orient'], smpl['body_pose']])
    np.testing.assert_allclose(instances.pose[0], pose, atol=1e-6)
    np.testing.assert_allclose(instances.betas[0], smpl['betas'], atol=1e-6)
    np.testing.assert_allclose(packed['data_samples'].warp, array(official['trans']), atol=1e-9)
    assert packed['data_samples'].ori_shape == tuple(official['img_size'])


MEAN = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64)[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64)[:, None, None]


def test_stock_preprocessor_normalizes_the_inputs():
    from mmpose.models import PoseDataPreprocessor

    image = np.zeros((96, 128, 3), np.uint8)
    image[:] = (10, 20, 30)  # B, G, R
    packed = Compose([CropPerson(size=32), dict(type='PackPerson')])(record(image=image))
    assert packed['inputs'].dtype == torch.uint8 and packed['inputs'].shape == (3, 32, 32)
    preprocessor = PoseDataPreprocessor(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    )
    batch = {name: [value, value] for name, value in packed.items()}
    inputs = preprocessor(batch)['inputs']
    assert inputs.shape == (2, 3, 32, 32)
    wanted = (torch.tensor([30.0, 20, 10])[:, None, None] - MEAN) / STD
    torch.testing.assert_close(inputs[0], wanted.float().expand(3, 32, 32))


def test_official_crops_are_not_rounded():
    given = record()
    given['augmentation'] = crops.Augmentation(color=(1.13, 0.9, 1.0))
    rounded, exact = CropPerson()(given)['crop'], CropPerson(official=True)(given)['crop']
    assert rounded.dtype == np.uint8 and exact.dtype == np.float32
    assert 0.4 < np.abs(rounded - exact).max() <= 0.5
    # R is channel 2 of BGR and gets the first factor.
    plain = CropPerson()({**given, 'augmentation': None})['crop']
    np.testing.assert_allclose(exact, plain * np.array([1.0, 0.9, 1.13]), rtol=1e-6)


def test_antialiasing_smooths_reduced_crops():
    checks = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)
    given = record(image=np.repeat(checks[..., None], 3, 2), center=[200, 200], scale=[1.5, 1.5])
    rough = CropPerson(size=64)(given)['crop'].std()
    smooth = CropPerson(size=64, antialias=True)(given)['crop'].std()
    official = CropPerson(size=64, antialias=True, official=True)(given)['crop'].std()
    assert smooth < 5 < rough and official == pytest.approx(rough, rel=1e-3)


def test_keypoints_follow_their_pixels_through_any_augmentation():
    height, width, seen = 300, 400, 0
    given = record(center=[200, 150], scale=[0.7, 0.7])
    given['keypoints_2d'][:, :2] = np.random.default_rng(1).uniform(130, 190, (44, 2))
    for seed in range(20):
        given['rng'] = np.random.default_rng(seed)
        for joint in (0, 4, 31, 43):
            image = np.zeros((height, width, 3), np.uint8)
            x, y = given['keypoints_2d'][joint, :2]
            cv2.circle(image, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
            augment = AugmentPerson(part_rate=0, color=0)
            result = CropPerson()(augment({**given, 'image': image}))
            light = np.argwhere(result['crop'][..., 0] > 127)
            if len(light) < 20:
                continue  # outside of the crop
            slot = crops.JOINTS_44_FLIP.index(joint) if result['flip'] else joint
            there = (result['crop_keypoints_2d'][slot, :2] + 0.5) * 256
            assert np.abs(light.mean(0)[::-1] - there).max() < 2.5
            seen += 1
    assert seen > 60


def test_a_crop_to_the_head_shows_the_head():
    given = record(image=np.zeros((600, 600, 3), np.uint8), center=[300, 300], scale=[3, 3])
    y = np.linspace(100, 500, 44)
    given['keypoints_2d'][:, :2] = np.stack([np.full(44, 300.0), y], 1)
    given['augmentation'] = crops.Augmentation(part='head')
    result = CropPerson()(given)
    head = list(crops.BODY_PARTS['head'][1])
    low, high = y[head].min(), y[head].max()
    assert result['input_center'][1] == pytest.approx((low + high) / 2)
    assert result['input_side'] == pytest.approx((high - low) * 1.2 * 1.3)
    assert result['box_size'] == 600


def test_tiny_body_parts_are_not_cropped_to():
    given = record(center=[50, 50], scale=[0.3, 0.3])
    given['keypoints_2d'][:, :2] = 40 + np.arange(44)[:, None] / 100
    given['augmentation'] = crops.Augmentation(part='torso')
    result = CropPerson()(given)
    assert result['input_side'] == 60 and tuple(result['input_center']) == (50, 50)


def test_the_share_of_body_part_crops_is_as_set():
    parts = [
        AugmentPerson(part_rate=0.1)(record(seed=seed))['augmentation'].part for seed in range(2000)
    ]
    assert np.mean([part is not None for part in parts]) == pytest.approx(0.1, abs=0.02)


def test_equal_generators_give_equal_samples():
    pipeline = Compose(
        [dict(type=t) for t in ('AugmentPerson', 'CropPerson', 'AddRealPoses', 'PackPerson')]
    )
    first, second, other = (pipeline(record(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first['inputs'], second['inputs'])
    assert not torch.equal(first['inputs'], other['inputs'])
    for name, _ in first['data_samples'].gt_instances.items():
        values = [each['data_samples'].gt_instances.get(name) for each in (first, second)]
        np.testing.assert_array_equal(*values)


def test_the_record_is_not_changed():
    given = record()
    before = {k: np.array(v) for k, v in given.items() if isinstance(v, np.ndarray)}
    pipeline = Compose([dict(type=t) for t in ('AugmentPerson', 'CropPerson', 'PackPerson')])
    pipeline(given)
    for name, value in before.items():
        np.testing.assert_array_equal(given[name], value)


def test_the_data_sample_holds_the_targets():
    pipeline = Compose([dict(type=t) for t in ('CropPerson', 'AddRealPoses', 'PackPerson')])
    sample = pipeline({**record(), 'mask': np.full((96, 128), 255, np.uint8)})['data_samples']
    shapes = {name: value.shape for name, value in sample.gt_instances.items()}
    assert shapes == {
        **{name: (1, *person()[name].shape) for name in (*TARGETS, 'keypoints')},
        'keypoints_visible': (1, 44),
        'bboxes': (1, 4),
        'real_body_pose': (1, 2, 69),
        'real_betas': (1, 2, 10),
        'masks': (1, 256, 256),
    }
    np.testing.assert_allclose(sample.gt_instances.bboxes, [[20.5, 0.25, 80.5, 80.25]], atol=1e-6)
    assert (sample.key, sample.dataset, sample.id) == ('k', 'set', 7)
    assert sample.img_path == 'somewhere/k.jpg'
    assert sample.box_size == pytest.approx(80)
    assert sample.ori_shape == (96, 128) and sample.img_shape == (256, 256)
    assert sample.to('cpu').gt_instances.crop_keypoints_2d.dtype == np.float32


def test_an_image_without_annotation_needs_only_its_box():
    names = ('image', 'center', 'scale', 'key', 'dataset', 'img_path', 'id')
    given = {name: record()[name] for name in names}
    pipeline = Compose([dict(type=t) for t in ('CropPerson', 'PackPerson')])
    packed, annotated = pipeline(given), pipeline(record())
    assert torch.equal(packed['inputs'], annotated['inputs'])
    assert packed['data_samples'].gt_instances.keys() == ['bboxes']


def test_a_mask_moves_with_the_image():
    mask = np.zeros((96, 128), np.uint8)
    mask[30:50, 40:60] = 255
    given = record(image=np.repeat(mask[..., None], 3, 2))
    result = CropPerson()(AugmentPerson(color=0)({**given, 'mask': mask}))
    np.testing.assert_array_equal(result['crop_mask'], result['crop'][..., 0])
    assert result['crop_mask'].any()


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (dict(type='CropPerson', border='reflect'), "'constant' or 'replicate', got 'reflect'"),
        (dict(type='AugmentPerson', part_level='wild'), "'mild' or 'aggressive', got 'wild'"),
    ],
)
def test_unknown_options_are_an_error(transform, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(transform)


# --- Real poses ----------------------------------------------------------------------------------
def test_the_embedded_poses_are_the_default():
    poses, betas = load_real_poses()
    assert poses.shape == (4000, 69) and betas is None
    added = AddRealPoses(number=50)(record())
    rows = {row.tobytes() for row in poses}
    assert all(pose.tobytes() in rows for pose in added['real_body_pose'])
    assert added['real_betas'].shape == (50, 10)
    assert added['real_betas'].std() == pytest.approx(1, abs=0.1)


def test_mocap_poses_keep_their_betas(tmp_path):
    pose = np.random.default_rng(0).normal(size=(9, 72))
    betas = np.arange(90.0).reshape(9, 10)
    np.savez(tmp_path / 'cmu_mocap.npz', body_pose=pose, betas=betas)
    added = AddRealPoses(str(tmp_path / 'cmu_mocap.npz'), number=4)(record())
    for one, shape in zip(added['real_body_pose'], added['real_betas'], strict=True):
        row = int(shape[0] / 10)
        np.testing.assert_allclose(one, pose[row, 3:], rtol=1e-6)
        np.testing.assert_allclose(shape, betas[row])


def test_a_missing_mocap_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match='cmu_mocap.npz.*path=None'):
        AddRealPoses(str(tmp_path / 'none.npz')).load()


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        (dict(pose=np.zeros((3, 72))), r'expected body_pose \(N, 72\), got \[.pose.\]'),
        (dict(body_pose=np.zeros((3, 69))), r'finite body_pose \(3, 72\), got \(3, 69\)'),
        (dict(body_pose=np.full((3, 72), np.nan)), r'expected finite body_pose \(3, 72\)'),
        (dict(body_pose=np.zeros((0, 72))), r'finite body_pose \(N, 72\), got \(0'),
        (dict(body_pose=np.zeros((3, 72)), betas=np.zeros((3, 9))), r'finite betas \(3, 10\)'),
    ],
)
def test_other_mocap_arrays_are_an_error(tmp_path, arrays, message):
    np.savez(tmp_path / 'm.npz', **arrays)
    with pytest.raises(ValueError, match=message):
        load_real_poses(tmp_path / 'm.npz')
