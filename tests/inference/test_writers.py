"""Other programs read from the files what was written."""

import json

import cv2
import numpy as np
import pytest
import trimesh
from small_models import body, noise, write_clip

from trunchier.files import save_npz
from trunchier.inference import writers
from trunchier.inference.sources import import_av

VERTICES, FACES = body()
PLACE = np.float32([0.3, 0.1, 4])  # in front of the camera
Y_UP = np.float32([1, -1, -1])


# --- numbers --------------------------------------------------------------------------------------
def test_json_has_mmposes_fields_and_track_ids():
    from mmengine.structures import InstanceData
    from mmpose.structures import split_instances

    rng = np.random.default_rng(0)
    fields = dict(
        keypoints=rng.random((2, 17, 2)),
        keypoint_scores=rng.random((2, 17)),
        bboxes=rng.random((2, 4)),
        bbox_scores=rng.random(2),
    )
    theirs = split_instances(InstanceData(**fields))
    theirs = json.loads(json.dumps(theirs))
    assert writers.instances_to_json(fields) == theirs
    more = writers.instances_to_json({**fields, 'track_ids': np.array([4, -1])})
    assert more[0].pop('track_id') == 4 and more == theirs  # nor has who is not tracked
    del fields['keypoint_scores']
    assert 'keypoint_scores' not in writers.instances_to_json(fields)[0]


def test_npz_files_are_joined_without_pickles(tmp_path):
    whole = {'a': np.arange(12.0).reshape(6, 2), 'b': np.arange(6, dtype=np.int32)}
    parts = []
    for i, (start, end) in enumerate([(0, 4), (4, 4), (4, 6)]):
        parts.append(tmp_path / f'{i}.npz')
        rows = {name: array[start:end] for name, array in whole.items()}
        save_npz(parts[-1], **rows, raw_a=rows['a'])
    writers.concatenate_npz(parts, tmp_path / 'all.npz', {'fps': 25.0}, leave_out=['raw_'])
    with np.load(tmp_path / 'all.npz', allow_pickle=False) as joined:
        assert set(joined.files) == {'a', 'b', 'fps'} and joined['fps'] == 25
        for name, array in whole.items():
            np.testing.assert_array_equal(joined[name], array)
            assert joined[name].dtype == array.dtype


# --- meshes ---------------------------------------------------------------------------------------
def test_obj_holds_the_body_upright_in_meters_near_the_origin(tmp_path):
    writers.write_obj(VERTICES, FACES, PLACE, tmp_path / 'a.obj')
    mesh = trimesh.load(tmp_path / 'a.obj', process=False)
    np.testing.assert_allclose(mesh.vertices, VERTICES * Y_UP, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, FACES)
    head = mesh.vertices[VERTICES[:, 1].argmin()]
    assert head[1] == mesh.vertices[:, 1].max()  # up is y
    first = (tmp_path / 'a.obj').read_text().partition('\n')[0]
    assert 'the camera is at -0.3 0.1 4 ' in first


def test_glb_holds_meshes_near_the_origin_and_each_person_in_place_by_its_node(tmp_path):
    people, places = np.stack([VERTICES, 1.1 * VERTICES]), np.float32([PLACE, PLACE + [1, 0, 2]])
    writers.write_glb(people, FACES, places, tmp_path / 'a.glb', np.zeros((2, 3)))
    scene = trimesh.load(tmp_path / 'a.glb', process=False)
    assert sorted(scene.geometry) == ['person0', 'person1']
    for person in range(2):
        transform, name = scene.graph[f'person{person}']
        mesh = scene.geometry[name]
        np.testing.assert_allclose(mesh.vertices, people[person] * Y_UP, atol=1e-5)
        np.testing.assert_array_equal(mesh.faces, FACES)
        placed = trimesh.transform_points(mesh.vertices, transform) * Y_UP
        np.testing.assert_allclose(placed, people[person] + places[person], atol=1e-5)
    assert len(mesh.vertex_normals) == len(mesh.vertices)


def test_colors_of_glb_are_linear(tmp_path):
    """Half the light is 188 of 255 on a screen: https://registry.khronos.org/glTF, 3.9.2."""
    colors = np.array([[0, 188, 255], [10, 128, 64]]) / 255
    path = tmp_path / 'a.glb'
    writers.write_glb(VERTICES[None].repeat(2, 0), FACES, np.zeros((2, 3)), path, colors)
    chunk = path.read_bytes()[20:]
    tree = json.JSONDecoder().raw_decode(chunk.decode(errors='replace'))[0]
    factors = [each['pbrMetallicRoughness']['baseColorFactor'] for each in tree['materials']]
    expected = [[0, 0.5029, 1, 1], [0.003035, 0.21586, 0.05127, 1]]
    np.testing.assert_allclose(factors, expected, atol=0.003)


def test_normals_are_weighted_by_the_area_of_faces(tmp_path):
    """A floor of 1 m^2 and, at its edge, a wall of 1 cm: the edge has the normal of the floor."""
    corners = np.float32([[0, 0, 0], [1, 0, 0], [0, 0, 2], [0, 0.01, 0]]) * [1, -1, -1]
    faces = np.array([[0, 1, 2], [0, 2, 3]])[:, ::-1]
    writers.write_obj(corners, faces, np.zeros(3), tmp_path / 'a.obj')
    normals = trimesh.load(tmp_path / 'a.obj', process=False).vertex_normals
    assert abs(normals[0][1]) > 0.99 and abs(normals[3][0]) > 0.99


def test_an_image_without_people_gives_an_empty_glb_that_opens(tmp_path):
    none = np.empty((0, 3), np.float32)
    writers.write_glb(np.empty((0, 6890, 3)), FACES, none, tmp_path / 'a.glb', none)
    assert len(trimesh.load(tmp_path / 'a.glb').geometry) == 0


# --- images ---------------------------------------------------------------------------------------
def test_images_are_written_in_the_format_of_their_suffix(tmp_path):
    image = noise(120, 180)
    writers.write_image(image, tmp_path / 'a.png')
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'a.png')), image)
    writers.write_image(image, tmp_path / 'a.jpg')
    assert np.abs(cv2.imread(str(tmp_path / 'a.jpg')).astype(int) - image).mean() < 3


@pytest.mark.parametrize('shape, written', [((96, 128), (96, 128)), ((97, 129), (96, 128))])
def test_videos_are_h264_that_players_open(tmp_path, shape, written):
    write_clip(tmp_path / 'a.mp4', frames=9, height=shape[0], width=shape[1], fps=24)
    data = (tmp_path / 'a.mp4').read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')  # plays while loading
    with import_av().open(str(tmp_path / 'a.mp4')) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264' and stream.average_rate == 24
        assert stream.codec_context.pix_fmt == 'yuv420p'
        images = [frame.to_ndarray(format='bgr24') for frame in container.decode(stream)]
    assert len(images) == 9 and images[0].shape[:2] == written
    wide = noise(shape[0], shape[1] + 72)
    for i, image in enumerate(images):
        expected = wide[: written[0], 8 * i : 8 * i + written[1]]
        assert np.abs(image.astype(int) - expected).mean() < 4


def test_frames_of_another_size_are_fitted(tmp_path):
    writer = writers.VideoWriter(tmp_path / 'a.mp4', 10, (64, 64))
    for shape in ((64, 64), (32, 80), (80, 80)):
        writer.write(noise(*shape))
    writer.close()
    with import_av().open(str(tmp_path / 'a.mp4')) as container:
        assert [(f.height, f.width) for f in container.decode(video=0)] == [(64, 64)] * 3


def test_videos_are_joined_frame_by_frame_in_time(tmp_path):
    parts = [write_clip(tmp_path / f'{i}.mp4', frames=n) for i, n in enumerate((7, 1, 12))]
    writers.concatenate_videos(parts, tmp_path / 'all.mp4')
    av = import_av()

    def decode(path):
        with av.open(str(path)) as container:
            return [(f.time, f.to_ndarray(format='bgr24')) for f in container.decode(video=0)]

    joined = decode(tmp_path / 'all.mp4')
    np.testing.assert_allclose([time for time, _ in joined], np.arange(20) / 10, atol=1e-3)
    separate = [image for part in parts for _, image in decode(part)]
    for (_, image), expected in zip(joined, separate, strict=True):
        np.testing.assert_array_equal(image, expected)
