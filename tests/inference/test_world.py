"""World coordinates: the ground that people stand on, and their sizes."""

import json

import numpy as np
import pytest
from small_models import CONFIGS, write_clip

from trunchier.inference.world import World

NAMES = ['pelvis', 'left_shoulder', 'right_shoulder', 'left_ankle', 'right_ankle']
PERSON = np.array([[0, 0.9, 0], [-0.2, 1.4, 0], [0.2, 1.4, 0], [-0.1, 0, 0.1], [0.1, 0.02, -0.1]])


def camera(pitch, roll, height):
    """World to camera: x right, y down, z forward of a camera at (0, height, 0)."""
    (a, b), (c, d) = ((np.cos(each), np.sin(each)) for each in np.radians((pitch, roll)))
    tilt = np.array([[1, 0, 0], [0, a, b], [0, -b, a]]).T
    turn = np.array([[c, -d, 0], [d, c, 0], [0, 0, 1]])
    rotation = turn @ tilt @ np.diag([1.0, -1, -1])
    return np.column_stack([rotation, -rotation @ [0, height, 0]])


def scene(seed, pitch=12.0, roll=-4.0, height=1.7, people=4, frames=30):
    """Rows of walking people in a camera, predicted 20 % too small to 20 % too large."""
    rng = np.random.default_rng(seed)
    extrinsics = camera(pitch, roll, height)
    sizes = np.exp(rng.uniform(-0.15, 0.15, people))
    sizes /= np.exp(np.median(np.log(sizes)))
    rows, truth, tracks = [], [], []
    for frame in range(frames):
        for person in range(people):
            place = [person - 1.5 + 0.02 * frame, 0, -4 - 1.3 * person]
            joints = PERSON + place + rng.normal(0, 0.01, PERSON.shape)
            truth.append(joints)
            rows.append((joints @ extrinsics[:, :3].T + extrinsics[:, 3]) / sizes[person])
            tracks.append(person)
    return np.array(tracks), np.array(rows), np.array(truth), sizes, extrinsics


@pytest.mark.parametrize('pitch, roll, height', [(12, -4, 1.7), (30, 0, 3.0), (0, 3, 1.2)])
def test_the_ground_is_found_and_people_stand_on_it(pitch, roll, height):
    tracks, rows, truth, sizes, extrinsics = scene(1, pitch, roll, height)
    world = World.of_people(tracks, rows, feet=[3, 4], top=[1, 2])
    known = World.of_extrinsics(extrinsics)
    angle = np.degrees(np.arccos(np.clip(world.rotation[1] @ known.rotation[1], -1, 1)))
    assert angle < 3 and abs(world.position[1] / height - 1) < 0.15
    placed = world(rows, tracks)
    assert np.abs(placed[:, 3:, 1]).mean() < 0.15 and placed[:, :, 2].max() < 0
    np.testing.assert_allclose(world.rotation @ world.rotation.T, np.eye(3), atol=1e-12)
    before = np.abs(np.log(sizes) - np.log(sizes).mean()).mean()
    found = np.log([world.scales[track] for track in range(4)]) - np.log(sizes)
    assert np.abs(found - found.mean()).mean() < 0.5 * before


def test_who_does_not_stand_on_the_ground_does_not_move_it():
    tracks, rows, _, _, _ = scene(1, people=5)
    one = World.of_people(tracks, rows, [3, 4], [1, 2])
    rows[tracks == 4] *= 3  # far below
    two = World.of_people(tracks, rows, [3, 4], [1, 2])
    assert abs(one.position[1] - two.position[1]) < 0.2 and abs(two.scales[4] - 1) < 0.05
    seen = tracks != 4
    three = World.of_people(tracks, rows, [3, 4], [1, 2], seen)
    assert 4 not in three.scales and three(rows[:1], np.array([4])).shape == (1, 5, 3)
    nobody = World.of_people(tracks[:0], rows[:0], [3, 4], [1, 2])
    np.testing.assert_array_equal(nobody.matrix, np.diag([1, -1, -1, 1]))


def test_a_measured_camera_gives_the_points_of_the_world():
    points = np.random.default_rng(0).normal(0, 2, (7, 3))
    extrinsics = camera(20, 5, 2)
    seen = points @ extrinsics[:, :3].T + extrinsics[:, 3]
    world = World.of_extrinsics(extrinsics)
    np.testing.assert_allclose(world(seen[:, None], np.zeros(7))[:, 0], points, atol=1e-12)
    matrix = world.matrix @ np.vstack([extrinsics, [0, 0, 0, 1]])
    np.testing.assert_allclose(matrix, np.eye(4), atol=1e-12)
    for wrong in (np.ones((3, 4)), np.eye(3), -extrinsics, extrinsics * np.nan):
        with pytest.raises(ValueError, match='extrinsics are a'):
            World.of_extrinsics(wrong)


def test_files_of_a_video_and_of_an_image_have_world_joints(
    weights, inferencer_types, tmp_path, image, boxes
):
    infer = inferencer_types['mesh'](CONFIGS['mesh'](), weights['mesh'], device='cpu')
    clip = write_clip(tmp_path / 'clip.mp4', frames=3)
    given = dict(bboxes=[[10, 10, 60, 90], [70, 5, 120, 90]], out_dir=tmp_path / 'a')
    list(infer(clip, **given, save='json,npz,animation,bvh', world=True))
    content = json.loads((tmp_path / 'a/predictions/clip.json').read_text())
    matrix = np.array(content['meta_info']['camera_to_world'])
    with np.load(tmp_path / 'a/predictions/clip.npz') as arrays:
        np.testing.assert_allclose(arrays['camera_to_world'], matrix)
        camera = arrays['joints'] + arrays['transl'][:, None]
        world, tracks = arrays['joints_world'], arrays['track_ids']
    person = content['instance_info'][1]['instances'][1]
    np.testing.assert_allclose(person['joints_world'], world[3], atol=1e-6)
    for track in (0, 1):  # a track has one size
        mine = camera[tracks == track].reshape(-1, 3) @ matrix[:3, :3].T
        moved = world[tracks == track].reshape(-1, 3) - matrix[:3, 3]
        scale = (mine * moved).sum() / (mine * mine).sum()
        np.testing.assert_allclose(moved, scale * mine, atol=1e-4)
    assert len(list((tmp_path / 'a/meshes').glob('*.bvh'))) == 2
    extrinsics = np.arange(12) * 0.0
    extrinsics[[0, 5, 10]] = 1, -1, -1
    list(infer(image, bboxes=boxes, out_dir=tmp_path / 'b', save='json', extrinsics=extrinsics))
    content = json.loads(next((tmp_path / 'b/predictions').glob('*.json')).read_text())
    assert content['meta_info']['camera_to_world'] == np.diag([1.0, -1, -1, 1]).tolist()
    assert np.shape(content['instance_info'][2]['joints_world']) == (44, 3)
    pose = inferencer_types['pose'](CONFIGS['pose'](), weights['pose'], device='cpu')
    with pytest.raises(ValueError, match='gives no places in 3D'):
        pose(image, world=True)


def test_untracked_people_of_videos_keep_their_size(weights, inferencer_types, tmp_path):
    infer = inferencer_types['mesh'](CONFIGS['mesh'](), weights['mesh'], device='cpu', track=False)
    clip = write_clip(tmp_path / 'clip.mp4', frames=3)
    given = dict(bboxes=[[10, 10, 60, 90], [70, 5, 120, 90]], out_dir=tmp_path / 'a')
    list(infer(clip, **given, save='json,npz,bvh', world=True))
    content = json.loads((tmp_path / 'a/predictions/clip.json').read_text())
    with np.load(tmp_path / 'a/predictions/clip.npz') as arrays:
        camera, found = arrays['joints'] + arrays['transl'][:, None], arrays['joints_world']
    world = np.array(content['meta_info']['camera_to_world'])
    np.testing.assert_allclose(found, camera @ world[:3, :3].T + world[:3, 3], atol=1e-5)
    people = [each for frame in content['instance_info'] for each in frame['instances']]
    np.testing.assert_allclose([each['joints_world'] for each in people], found, atol=1e-6)
