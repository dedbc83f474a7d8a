"""Synthetic people: body, poses, images, annotations, data sets."""

import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('numba', reason='rendering requires numba')

from trunchier.conventions import COCO_17, COCO_17_FLIP, SMPL_24, SMPL_24_FLIP  # noqa: E402
from trunchier.geometry import axis_angle_to_matrix  # noqa: E402
from trunchier.synthetic import backdrop, coco, dataset, garments, people, poses, scene  # noqa: E402
from trunchier.synthetic.figure import body, build_figure  # noqa: E402
from trunchier.synthetic.wardrobe import HAIR_COLORS, pick, sample_outfit  # noqa: E402

LEFT_WRIST, NOSE = COCO_17.index('left_wrist'), COCO_17.index('nose')
FACING = np.diag((1.0, -1.0, -1.0))  # rotates an upright body to face the camera
FLIP = list(SMPL_24_FLIP)


def joints(rotations, rest=None):
    return poses.forward_kinematics(rotations, poses.rest_joints() if rest is None else rest)[1]


@pytest.fixture(scope='module')
def samples():
    """Forty images with up to three people each."""
    made = people.SyntheticPeople(seed=5, max_people=3, length=40)
    return [made[index] for index in range(40)]


def standing(translation=(0.0, 0.0, 3.0), facing=FACING, seed=0):
    """An upright person in front of the camera."""
    rng = np.random.default_rng(seed)
    rotations = poses.standing_pose().rotations.copy()
    rotations[0] = facing
    figure = build_figure(rotations, np.zeros(10), sample_outfit(rng, ('', '')))
    figure.move(np.array(translation))
    return figure


def render(figures, props=(), size=(128, 128), focal=160.0, seed=0):
    """A scene of the given people, with the principal point in the middle."""
    room = scene.Room(FACING.copy(), 3.0, -1.0)
    camera = scene.Camera(focal, np.array(size) / 2)
    return scene.render(np.random.default_rng(seed), size, figures, list(props), camera, room)


# --- Body and poses -------------------------------------------------------------------------------
def test_the_body_is_posed_as_by_the_body_model():
    pytest.importorskip('smplx')
    from trunchier.models.mesh.body import BodyModel

    rng = np.random.default_rng(0)
    rotations = poses.clip_pose(rng).rotations
    betas = rng.standard_normal(10)
    figure = build_figure(rotations, betas, sample_outfit(rng, ('', '')))
    matrices = torch.from_numpy(rotations).float()[None]
    expected = BodyModel()(matrices[:, :1], matrices[:, 1:], torch.from_numpy(betas).float()[None])
    assert np.abs(figure.bare - expected['vertices'][0].numpy()).max() < 1e-5
    assert np.abs(figure.joints - expected['joints'][0].numpy()).max() < 1e-5


def test_mirrored_poses_exchange_left_and_right():
    pose = poses.stance_pose(np.random.default_rng(0), poses.rest_joints())
    rest = poses.rest_joints()
    rest = (rest + (rest * (-1, 1, 1))[FLIP]) / 2  # an even body
    positions = joints(pose.rotations, rest)
    mirrored = joints(poses.mirror(pose.rotations), rest)
    assert np.allclose(mirrored, (positions * (-1, 1, 1))[FLIP], atol=1e-9)


def test_limbs_of_sampled_poses_do_not_penetrate():
    rng = np.random.default_rng(1)
    for _ in range(100):
        pose = poses.sample_pose(rng)
        assert poses.penetration(joints(pose.rotations)) < 0


def test_a_hand_inside_the_belly_is_a_penetration():
    positions = joints(poses.standing_pose().rotations)
    assert poses.penetration(positions) < 0
    positions[[20, 22]] = (positions[0] + positions[9]) / 2
    assert poses.penetration(positions) > 0.05


def test_hands_reach_the_position_in_the_table():
    angles = np.zeros(18)
    still = np.zeros(7)
    hands = np.stack([poses.hand_target('hip', side, still) for side in (0, 1)])
    rotations = poses.compose(angles, hands, poses.rest_joints())
    positions = joints(rotations)
    offset = np.array(poses.HANDS['hip'].offset) / 100
    # The arms of the T-pose are straight to a millimeter.
    assert np.allclose(positions[20], positions[1] + offset, atol=1e-3)
    assert np.allclose(positions[21], positions[2] + offset * (-1, 1, 1), atol=1e-3)


def test_knees_and_elbows_bend_in_one_direction_only():
    rng = np.random.default_rng(3)
    for _ in range(60):
        rotations = poses.stance_pose(rng, poses.rest_joints()).rotations
        for knee in (4, 5):
            angle = np.arctan2(rotations[knee, 2, 1], rotations[knee, 1, 1])
            assert -1e-6 <= angle <= np.radians(140) + 1e-6
        for elbow, out in ((18, 1), (19, -1)):
            forearm = rotations[elbow] @ (out, 0, 0)  # in the frame of the upper arm
            assert abs(forearm[1]) < 1e-6
            assert forearm[2] > 0


def test_sampled_poses_are_rotations_and_vary():
    rng = np.random.default_rng(2)
    drawn = np.stack([poses.sample_pose(rng).rotations for _ in range(50)])
    assert np.allclose(drawn @ drawn.swapaxes(-1, -2), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(drawn), 1)
    elbows, knees = drawn[:, [18, 19]].std(0), drawn[:, [4, 5]].std(0)
    assert elbows.max() > 0.2
    assert knees.max() > 0.2


# --- Annotations ----------------------------------------------------------------------------------
def test_annotated_keypoints_are_projections_of_the_joints_of_the_annotated_body(samples):
    pytest.importorskip('smplx')
    from trunchier.models.mesh.body import BodyModel

    model = BodyModel()
    for sample in samples[:8]:
        for person in sample['people']:
            matrices = axis_angle_to_matrix(torch.from_numpy(person['pose']).view(1, 24, 3))
            out = model(matrices[:, :1], matrices[:, 1:], torch.from_numpy(person['betas'])[None])
            joints = out['joints'][0].numpy() + person['translation']
            assert np.abs(joints - person['keypoints_3d'][:, :3]).max() < 1e-4
            pixels = sample['focal'] * joints[:, :2] / joints[:, 2:] + sample['principal_point']
            assert np.allclose(pixels, person['keypoints_2d'][:, :2], atol=0.05)


def test_keypoints_are_visible_on_the_person_or_occluded_inside_the_image_or_zero(samples):
    on_person = []
    for sample in samples:
        for person in sample['people']:
            for x, y, v in person['keypoints']:
                assert v in (0, 1, 2)
                if v == 0:
                    assert (x, y) == (0, 0)
                    continue
                row, column = round(y), round(x)
                assert 0 <= row < 256
                assert 0 <= column < 256
                if v == 2:
                    on_person.append(person['mask'][row, column])
    assert len(on_person) > 300
    assert np.mean(on_person) > 0.99  # an ear may stick out by less than a pixel


def test_boxes_enclose_their_masks_tightly(samples):
    for sample in samples:
        for person in sample['people']:
            x, y, w, h = person['bbox'].astype(int)
            inside = person['mask'][y : y + h, x : x + w]
            assert inside.sum() == person['mask'].sum() == person['area']
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()


def test_people_are_whole_in_most_images():
    made = people.SyntheticPeople(seed=8)
    labelled = [(made[i]['people'][0]['keypoints'][:, 2] > 0).sum() for i in range(60)]
    assert np.mean(np.array(labelled) == 17) > 0.7
    assert min(labelled) >= 5


def test_left_keypoints_are_on_the_right_of_a_person_who_faces_the_camera():
    figure = standing()
    keypoints = people.annotate(render([figure]))[0]['keypoints']
    for left, right in enumerate(COCO_17_FLIP):
        if left < right:
            assert keypoints[left, 0] > keypoints[right, 0]
    # Eyes above the nose, ears beside, shoulders below: y points down.
    names = dict(zip(COCO_17, keypoints, strict=True))
    assert names['left_eye'][1] < names['nose'][1] < names['left_shoulder'][1]
    assert names['left_eye'][0] < names['left_ear'][0]
    assert names['left_shoulder'][1] < names['left_hip'][1] < names['left_knee'][1]


def test_faces_are_occluded_from_behind():
    behind = people.annotate(render([standing(facing=FACING @ np.diag((-1.0, 1, -1)))]))[0]
    before = people.annotate(render([standing()]))[0]
    assert before['keypoints'][NOSE, 2] == 2
    assert behind['keypoints'][NOSE, 2] == 1


def test_an_occluder_hides_only_the_keypoints_behind_it():
    figure = standing()
    wrist = figure.coco[LEFT_WRIST]
    before = people.annotate(render([figure]))[0]
    wall = scene.Prop(
        vertices=scene.BOX_VERTICES * np.float32(0.12) + wrist - np.float32((0, 0, 0.4)),
        normals=scene.BOX_NORMALS,
        rest=scene.BOX_VERTICES,
        paint=np.full(len(garments.PAINT), 0.5, np.float32),
    )
    after = people.annotate(render([figure], [wall]))[0]
    assert before['keypoints'][LEFT_WRIST, 2] == 2
    assert after['keypoints'][LEFT_WRIST, 2] == 1
    assert after['keypoints'][LEFT_WRIST, :2] == pytest.approx(before['keypoints'][LEFT_WRIST, :2])
    others = [k for k in range(17) if 'left' not in COCO_17[k]]
    assert (after['keypoints'][others] == before['keypoints'][others]).all()
    assert after['area'] < before['area']


def test_people_in_front_hide_people_behind():
    front, back = standing((0.0, 0, 2.5), seed=1), standing((0.05, 0, 4.0), seed=2)
    found = people.annotate(render([back, front]))
    assert len(found) == 2
    hidden, seen = found
    assert (hidden['keypoints'][5:, 2] == 2).sum() < (seen['keypoints'][5:, 2] == 2).sum()
    assert not (hidden['mask'] & seen['mask']).any()


def test_faces_of_furniture_point_outwards():
    a, b, c = (scene.BOX_VERTICES[scene.BOX_FACES[:, k]] for k in range(3))
    outward = np.cross(b - a, c - a)
    assert ((outward * (a + b + c)).sum(1) > 0).all()
    assert ((outward * scene.BOX_NORMALS[scene.BOX_FACES[:, 0]]).sum(1) > 0).all()


# --- Outfits --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('position', 'expected'),
    [
        ((0.0, 0.30, 0.10), 'top'), ((0.0, 0.0, 0.10), 'bottom'), ((0.2, -0.95, 0.1), 'shoe'),
        ((0.3, 0.48, 0.0), 'top'), ((0.6, 0.48, 0.0), 'skin'), ((0.16, -0.6, 0.0), 'bottom'),
        ((0.0, 0.83, 0.0), 'hair'), ((0.0, 0.63, 0.10), 'skin'), ((0.0, 0.653, 0.12), 'lip'),
    ],
)  # fmt: skip
def test_garments_cover_the_part_of_the_body_that_the_dress_sets(position, expected):
    dress = np.zeros(len(garments.DRESS), np.float32)
    edges = dict(
        sleeve=0.4, hem=0.05, neck=0.55, neck_width=0.08, leg=-0.9, waist=0.08, sock=-9, shoe=-0.89,
        hair_front=0.785, hair_back=0.66, hat=9, outer_hem=9, glove=9,
    )  # fmt: skip
    for name, value in edges.items():
        dress[garments.DRESS.index(name)] = value
    assert garments.MATERIALS[garments.garment(*position, dress)] == expected


def test_pick_follows_the_frequencies():
    rng = np.random.default_rng(0)
    drawn = [pick(rng, ('a', 'b', 'c'), (1, 0, 3)) for _ in range(4000)]
    assert drawn.count('b') == 0
    assert drawn.count('c') / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert {pick(rng, HAIR_COLORS) for _ in range(300)} == set(HAIR_COLORS)


# --- Seeds ----------------------------------------------------------------------------------------
def digest(folder):
    """Name and hash of every file."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_images_do_not_depend_on_the_order_of_access():
    one = people.SyntheticPeople(seed=3, max_people=2)
    other = people.SyntheticPeople(seed=3, max_people=2)
    expected = [one.encoded(index)[0] for index in range(4)]
    assert [other.encoded(index)[0] for index in (3, 1, 2, 0)] == [
        expected[index] for index in (3, 1, 2, 0)
    ]


def test_different_seeds_and_indices_give_different_images():
    images = {
        people.SyntheticPeople(seed=seed).encoded(index)[0]
        for seed, index in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert len(images) == 4


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A small data set on disk, made in this process."""
    out = tmp_path_factory.mktemp('synthetic') / 'set'
    made = coco.write_coco(out, 24, seed=2, size=(160, 128), max_people=2)
    return out, made


def test_the_files_do_not_depend_on_the_number_of_workers(written, tmp_path):
    coco.write_coco(tmp_path / 'set', 24, seed=2, size=(160, 128), max_people=2, workers=2)
    assert digest(tmp_path / 'set') == digest(written[0])


def test_another_seed_changes_every_image(written, tmp_path):
    coco.write_coco(tmp_path / 'set', 24, seed=3, size=(160, 128), max_people=2)
    theirs, ours = digest(tmp_path / 'set'), digest(written[0])
    assert set(theirs) == set(ours)
    assert not set(theirs.values()) & set(ours.values())


# --- The data set on disk -------------------------------------------------------------------------
def test_a_data_set_has_its_images_and_a_body_for_each_annotation(written):
    out, made = written
    annotations = json.loads((out / 'annotations.json').read_text())
    assert made['images'] == len(annotations['images']) == 24
    assert made['people'] == len(annotations['annotations'])
    for image in annotations['images']:
        pixels = cv2.imread(str(out / 'images' / image['file_name']))
        assert pixels.shape == (128, 160, 3)
    with np.load(out / 'bodies.npz', allow_pickle=False) as bodies:
        assert bodies['annotation_id'].tolist() == [a['id'] for a in annotations['annotations']]
        assert bodies['image_id'].tolist() == [a['image_id'] for a in annotations['annotations']]
        shapes = {name: bodies[name].shape[1:] for name in bodies.files}
        joints = bodies['keypoints_3d'][..., :3]
        pixels = joints[..., :2] / joints[..., 2:] * bodies['focal'][:, None, None]
        pixels += bodies['principal_point'][:, None]
        assert np.abs(pixels - bodies['keypoints_2d'][..., :2]).max() < 0.1
    assert shapes['keypoints_2d'] == (44, 3)
    assert shapes['keypoints_3d'] == (44, 4)
    assert shapes['center'] == (2,)
    assert shapes['scale'] == (2,)
    assert shapes['body_pose'] == (72,)
    assert shapes['betas'] == (10,)


def test_masks_decode_to_the_visible_pixels(written):
    mask_tool = pytest.importorskip('pycocotools.mask')
    out, _ = written
    sequence = people.SyntheticPeople(seed=2, size=(160, 128), max_people=2, length=24)
    visible = [person['mask'] for sample in sequence for person in sample['people']]
    annotations = json.loads((out / 'annotations.json').read_text())['annotations']
    assert len(visible) == len(annotations)
    for mask, annotation in zip(visible, annotations, strict=True):
        assert (mask_tool.decode(annotation['segmentation']).astype(bool) == mask).all()


def test_stock_coco_dataset_reads_the_data_set(written):
    pytest.importorskip('mmpose')
    from mmpose.datasets import CocoDataset

    out, made = written
    stock = CocoDataset(
        ann_file='annotations.json', data_root=str(out), data_prefix=dict(img='images/'),
        pipeline=[dict(type='LoadImage', _scope_='mmpose')],
    )  # fmt: skip
    assert len(stock) == made['people']
    first = stock[0]
    assert first['img'].shape == (128, 160, 3)
    assert first['keypoints'].shape == (1, 17, 2)
    assert first['keypoints_visible'].shape[:2] == (1, 17)


def test_stock_coco_metric_gives_the_ground_truth_an_ap_of_one(written):
    pytest.importorskip('mmpose')
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    from mmpose.evaluation.metrics import CocoMetric

    out, _ = written
    truth = json.loads((out / 'annotations.json').read_text())
    metric = CocoMetric(ann_file=str(out / 'annotations.json'), nms_mode='none')
    metric.dataset_meta = parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py'))
    for each in truth['annotations']:
        keypoints = np.array(each['keypoints'], np.float32).reshape(1, 17, 3)
        x, y, w, h = each['bbox']
        truth_boxes = dict(bboxes=np.array([[x, y, x + w, y + h]]), bbox_scores=np.ones(1))
        guess = dict(keypoints=keypoints[..., :2], keypoint_scores=np.ones((1, 17)))
        sample = dict(
            id=each['id'],
            img_id=each['image_id'],
            category_id=1,
            pred_instances=dict(guess, bbox_scores=np.ones(1)),
            gt_instances=dict(truth_boxes, bbox_scales=np.array([[w, h]])),
        )
        metric.process([], [sample])
    result = metric.evaluate(size=len(truth['annotations']))
    assert result['coco/AP'] == pytest.approx(1.0)


def test_a_complete_data_set_is_not_written_again(written):
    out, made = written
    before = digest(out)
    again = coco.write_coco(out, 24, seed=2, size=(160, 128), max_people=2)
    assert again['people'] == made['people']
    assert again['seconds'] == 0
    assert digest(out) == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    encoded = people.SyntheticPeople.encoded

    def interrupted(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return encoded(self, index)

    monkeypatch.setattr(people.SyntheticPeople, 'encoded', interrupted)
    with pytest.raises(KeyboardInterrupt):
        coco.write_coco(tmp_path / 'set', 8)
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_is_silent_when_piped(tmp_path, capsys):
    coco.write_coco(tmp_path / 'piped', 2, size=64)
    assert capsys.readouterr().err == ''
    coco.write_coco(tmp_path / 'shown', 2, size=64, quiet=False)
    assert '100%' in capsys.readouterr().err


# --- Backgrounds and bad input --------------------------------------------------------------------
def test_corrupt_backgrounds_are_skipped_and_counted(tmp_path):
    photos = tmp_path / 'images'
    photos.mkdir()
    (photos / 'broken.jpg').write_bytes(b'not an image')
    (photos / 'empty.png').write_bytes(b'')
    cv2.imwrite(str(photos / 'good.png'), np.full((50, 70, 3), (10, 200, 30), np.uint8))
    made = coco.write_coco(tmp_path / 'set', 6, size=64, backgrounds=photos)
    assert [path.name for path in made['unreadable']] == ['broken.jpg', 'empty.png']
    folder = backdrop.Folder(photos)
    image = folder(np.random.default_rng(0), (64, 48))
    assert image.shape == (48, 64, 3)
    assert (image == (30, 200, 10)).all()  # RGB


def test_undecodable_backgrounds_are_an_error(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'not an image')
    with pytest.raises(ValueError, match='none of the 1 images'):
        people.SyntheticPeople(size=64, backgrounds=tmp_path)[0]


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(num=0), ValueError, 'num is 0; expected 1'),
        (dict(workers=0), ValueError, 'workers is 0; expected 1'),
        (dict(seed=-1), ValueError, 'seed is -1; expected'),
        (dict(size=8), ValueError, 'size is 8; expected'),
        (dict(size=(256, 5000)), ValueError, 'size is .*5000'),
        (dict(size=(1, 2, 3)), ValueError, 'size is'),
        (dict(max_people=0), ValueError, 'max_people is 0; expected 1'),
        (dict(max_people=2, min_people=3), ValueError, 'max_people is 2; expected 3 or more'),
        (dict(backgrounds='no/such/folder'), FileNotFoundError, 'no folder no/such/folder'),
    ],
)
def test_invalid_options_are_named(tmp_path, options, error, message):
    options = dict(dict(num=1), **options)
    with pytest.raises(error, match=message):
        coco.write_coco(tmp_path / 'set', **options)
    assert not (tmp_path / 'set').exists()


def test_a_background_folder_without_images_is_named(tmp_path):
    (tmp_path / 'notes.txt').write_text('no image')
    with pytest.raises(FileNotFoundError, match='no image'):
        people.SyntheticPeople(backgrounds=tmp_path)


def test_other_content_is_never_overwritten(written, tmp_path):
    (tmp_path / 'thesis.txt').write_text('all of it')
    with pytest.raises(FileExistsError, match='other content; delete it or choose another'):
        coco.write_coco(tmp_path, 1)
    with pytest.raises(FileExistsError, match='other options'):
        coco.write_coco(written[0], 1)
    with pytest.raises(FileExistsError, match='is a file'):
        coco.write_coco(tmp_path / 'thesis.txt', 1)
    assert (tmp_path / 'thesis.txt').read_text() == 'all of it'


def test_images_beyond_the_end_are_an_index_error():
    made = people.SyntheticPeople(length=2)
    assert len(made) == 2
    with pytest.raises(IndexError):
        made[2]
    with pytest.raises(TypeError, match='endless'):
        len(people.SyntheticPeople())


# --- On the fly -----------------------------------------------------------------------------------
def test_bodies_rendered_on_the_fly_fit_the_pipeline_of_mesh_training():
    pytest.importorskip('mmpose')
    from trunchier.datasets import MixedPeople

    source = dataset.SyntheticBodies(length=5)
    mix = MixedPeople(
        datasets=[source],
        pipeline=[dict(type='AugmentPerson'), dict(type='CropPerson'), dict(type='PackPerson')],
    )
    packed = mix[7, 3]
    assert packed['inputs'].shape == (3, 256, 256)
    assert packed['data_samples'].gt_instances.has_pose.item() == 1
    again = mix[7, 3]
    assert torch.equal(packed['inputs'], again['inputs'])
    assert not torch.equal(packed['inputs'], mix[8, 3]['inputs'])
    assert source.locate(0, 0) >= len(source)


def test_the_embedded_body_has_the_layout_of_smpl():
    mean = body()
    assert mean.template.shape == (6890, 3)
    assert mean.faces.shape == (13776, 3)
    # Closed: each edge is shared by two faces, in opposite directions.
    edges = mean.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert {tuple(e) for e in edges.tolist()} == {tuple(e) for e in edges[:, ::-1].tolist()}
    left, right = (mean.template_skeleton[SMPL_24.index(f'{s}_wrist')] for s in ('left', 'right'))
    assert left[0] > 0.6
    assert np.allclose(left * (-1, 1, 1), right, atol=0.02)


def test_plain_images_show_whole_people():
    plain = people.SyntheticPeople(seed=1, plain=True, length=40)
    keypoints = np.stack([person['keypoints'] for one in plain for person in one['people']])
    assert (keypoints[..., 2] > 0).all()
    default = people.SyntheticPeople(seed=1, length=40)
    cut = np.stack([person['keypoints'] for one in default for person in one['people']])
    assert (cut[..., 2] == 0).any()
    hidden = [(points[..., 2] == 1).mean() for points in (keypoints, cut)]
    assert hidden[0] < hidden[1]


def test_without_numba_the_error_names_the_remedy():
    script = (
        "import sys; sys.modules['numba'] = None\n"
        'from trunchier.synthetic import SyntheticBodies\n'
        'try:\n    SyntheticBodies().full_init()\n'
        'except ImportError as error:\n    print(error)'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.stdout.endswith('need numba: pip install numba\n')
