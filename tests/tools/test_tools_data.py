import importlib.util
import json
import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import people
import pytest

from trunchier.conventions import ANNOTATED, H36M_17_IN_44, ON_DISK, SPIN_24_IN_44
from trunchier.datasets import NpzPeople, ShardPeople
from trunchier.zoo import datasets as released


def load_tool(name):
    path = Path(__file__).parents[2] / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    tool = importlib.util.module_from_spec(spec)
    sys.modules[name] = tool  # so that its functions can be pickled
    spec.loader.exec_module(tool)
    return tool


make_shards, check_data = load_tool('make_shards'), load_tool('check_data')


def records(dataset):
    dataset.full_init()
    return [dataset.record(index) for index in range(len(dataset))]


def same_people(ours, wanted):
    assert len(ours) == len(wanted)
    for one, other in zip(ours, wanted, strict=True):
        for name in ANNOTATED:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(one['image'], other['image'])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos' / 'deep' / 'inside'
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f'a.{number}.jpg').write_bytes(people.jpeg(shade=80 * number))
    return tmp_path / 'photos'


@pytest.fixture
def spin(tmp_path, photos):
    """An npz as SPIN has them; two people share a picture."""
    rng = np.random.default_rng(0)
    arrays = dict(
        imgname=np.array(['a.0.jpg', 'a.1.jpg', 'a.1.jpg', 'a.2.jpg']),
        center=rng.uniform(40, 60, (4, 2)),
        scale=rng.uniform(0.3, 0.5, 4),
        part=rng.uniform(1, 90, (4, 24, 3)),
        S=rng.uniform(0.1, 1, (4, 24, 4)),
        pose=rng.normal(0, 0.2, (4, 72)),
        shape=rng.normal(0, 1, (4, 10)),
    )
    np.savez(tmp_path / 'spin.npz', **arrays)
    return tmp_path / 'spin.npz', arrays


def test_shards_equal_their_spin_file(tmp_path, photos, spin, capsys):
    path, arrays = spin
    make_shards.main([str(path), '--images', str(photos), '--out', str(tmp_path / 'out')])
    assert '1 shards, 3 images, 4 people; skipped: none' in capsys.readouterr().out
    found = records(ShardPeople(tmp_path / 'out', filters=None))
    for row, record in enumerate(found):
        points = record['keypoints_2d']
        np.testing.assert_allclose(points[list(SPIN_24_IN_44)], arrays['part'][row], rtol=1e-6)
        assert points.any(1).sum() == 24
        np.testing.assert_allclose(
            record['keypoints_3d'][list(SPIN_24_IN_44)], arrays['S'][row], rtol=1e-6
        )
        np.testing.assert_allclose(record['pose'], arrays['pose'][row], rtol=1e-6)
        np.testing.assert_allclose(record['betas'], arrays['shape'][row], rtol=1e-6)
        np.testing.assert_allclose(record['scale'], arrays['scale'][row])
        assert record['has_pose'] == record['has_betas'] == 1
        shade = int(str(arrays['imgname'][row])[2]) * 80
        assert abs(record['image'].mean() - shade) < 2


def test_webdataset_reads_the_shards(tmp_path, photos, spin):
    from webdataset import WebDataset

    make_shards.main([str(spin[0]), '--images', str(photos), '--out', str(tmp_path / 'out')])
    members = list(WebDataset(str(tmp_path / 'out' / '000000.tar'), shardshuffle=False))
    assert [len(pickle.loads(member['data.pyd'])) for member in members] == [1, 2, 1]
    assert all(member['__key__'].startswith('out/') and member['jpg'] for member in members)


def test_npz_and_shards_hold_the_same_people(tmp_path, photos, spin):
    given = [str(spin[0]), '--images', str(photos), '--out']
    make_shards.main([*given, str(tmp_path / 'shards')])
    make_shards.main([*given, str(tmp_path / 'eval.npz'), '--to', 'npz'])
    again = [str(tmp_path / 'eval.npz'), '--images', str(photos), '--out', str(tmp_path / 'again')]
    make_shards.main(again)
    wanted = records(ShardPeople(tmp_path / 'shards', filters=None))
    same_people(records(NpzPeople(tmp_path / 'eval.npz', photos)), wanted)
    same_people(records(ShardPeople(tmp_path / 'again', filters=None)), wanted)


def test_shards_have_the_requested_size(tmp_path, photos, spin):
    given = [str(spin[0]), '--images', str(photos), '--out', str(tmp_path / 'out')]
    make_shards.main([*given, '--per-shard', '2'])
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['000000.tar', '000001.tar']
    assert len(records(ShardPeople(tmp_path / 'out', filters=None))) == 4


def test_the_same_input_gives_the_same_bytes(tmp_path, photos, spin):
    for folder in ('x', 'y'):
        out = tmp_path / folder / 'set'
        make_shards.main([str(spin[0]), '--images', str(photos), '--out', str(out)])
    one, other = (tmp_path / folder / 'set' / '000000.tar' for folder in ('x', 'y'))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize('layout', ['h36m', 'mpi-inf'])
def test_17_joints_are_mapped_by_their_layout(tmp_path, photos, layout):
    part = np.arange(1.0, 52).reshape(1, 17, 3)
    np.savez(
        tmp_path / 'x.npz',
        imgname=np.array(['a.0.jpg']),
        center=np.array([[50.0, 50]]),
        scale=np.array([0.4]),
        part=part,
        S=np.ones((1, 17, 4)),
    )
    given = [str(tmp_path / 'x.npz'), '--images', str(photos), '--out', str(tmp_path / 'out')]
    with pytest.raises(SystemExit, match='17 joints; choose --layout h36m or --layout mpi-inf'):
        make_shards.main(given)
    make_shards.main([*given, '--layout', layout])
    (record,) = records(ShardPeople(tmp_path / 'out', filters=None))
    assert record['keypoints_2d'].any(1).sum() == 17
    pelvis = {'h36m': 0, 'mpi-inf': 14}[layout]
    np.testing.assert_array_equal(record['keypoints_2d'][39], part[0, pelvis])
    assert not record['has_pose'] and not record['has_betas']


def test_fits_may_be_omitted(tmp_path, photos, spin):
    given = [str(spin[0]), '--images', str(photos), '--out', str(tmp_path / 'out')]
    make_shards.main([*given, '--joints-only'])
    found = records(ShardPeople(tmp_path / 'out', filters=None))
    assert not any(record['has_pose'] or record['has_betas'] for record in found)


def test_synthetic_people_become_shards(tmp_path):
    folder = tmp_path / 'made'
    (folder / 'images').mkdir(parents=True)
    given = [people.annotation(number) for number in range(3)]
    for number in range(2):
        (folder / 'images' / f'{number:06}.jpg').write_bytes(people.jpeg(shade=100 * number))
    images = [dict(id=n + 1, file_name=f'{n:06}.jpg') for n in range(2)]
    (folder / 'annotations.json').write_text(json.dumps(dict(images=images)))
    names = {name: ON_DISK.get(name, name) for name in ANNOTATED if name != 'scale'}
    np.savez(
        folder / 'bodies.npz',
        image_id=np.array([1, 1, 2]),
        scale=np.array([0.4, 0.4, 0.4]),
        **{name: np.stack([data[name] for data in given]) for name in names.values()},
    )
    make_shards.main([str(folder), '--out', str(tmp_path / 'out')])
    found = records(ShardPeople(tmp_path / 'out', filters=None))
    for record, data in zip(found, given, strict=True):
        for name, on_disk in names.items():
            np.testing.assert_allclose(record[name], data[on_disk], rtol=1e-6)
    assert [round(record['image'].mean() / 100) for record in found] == [0, 0, 1]


def test_bad_rows_are_skipped_and_named(tmp_path, photos, spin, capsys):
    path, arrays = spin
    arrays['pose'][1, 5] = np.nan
    arrays['scale'][3] = 0
    np.savez(path, **arrays)
    make_shards.main([str(path), '--images', str(photos), '--out', str(tmp_path / 'out')])
    out, err = capsys.readouterr()
    assert '2 people; skipped: 1 malformed annotation, 1 zero-size box' in out
    assert 'row 1' in err and 'body_pose holds NaN' in err and 'row 3' in err


def test_undecodable_images_are_skipped(tmp_path, photos, spin, capsys):
    picture = photos / 'deep' / 'inside' / 'a.1.jpg'
    picture.write_bytes(picture.read_bytes()[:-200])
    make_shards.main([str(spin[0]), '--images', str(photos), '--out', str(tmp_path / 'out')])
    assert '2 people; skipped: 2 undecodable image' in capsys.readouterr().out


def test_missing_images_are_an_error_and_nothing_is_written(tmp_path, photos, spin):
    (photos / 'deep' / 'inside' / 'a.2.jpg').unlink()
    with pytest.raises(SystemExit, match=r'1 of 4 images are missing, the first is .*a\.2\.jpg'):
        make_shards.main([str(spin[0]), '--images', str(photos), '--out', str(tmp_path / 'out')])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['photos', 'spin.npz']


def test_an_interrupted_run_leaves_nothing(tmp_path, photos, spin, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_shards, '_add_image', killed)
    with pytest.raises(KeyboardInterrupt):
        make_shards.main([str(spin[0]), '--images', str(photos), '--out', str(tmp_path / 'out')])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['photos', 'spin.npz']


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path, photos, spin):
    with pytest.raises(SystemExit, match='is not empty'):
        make_shards.main([str(spin[0]), '--images', str(photos), '--out', str(photos)])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(center=None), r"lacks \['center'\]"),
        (dict(pose=np.zeros((4, 69))), r'pose is \(4, 69\), expected \(4, 72\)'),
        (dict(S=np.zeros((4, 24, 3))), r'S is \(4, 24, 3\), expected \(4, 24, 4\)'),
        (dict(shape=np.zeros((3, 10))), r'shape is \(3, 10\), expected \(4, 10\)'),
    ],
)
def test_other_layouts_are_an_error(tmp_path, photos, spin, changes, message):
    path, arrays = spin
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    np.savez(path, **arrays)
    with pytest.raises(SystemExit, match=message):
        make_shards.main([str(path), '--images', str(photos), '--out', str(tmp_path / 'out')])


# --- Real files -----------------------------------------------------------------------------------
def test_both_files_of_human36m_agree(shared, tmp_path):
    folder = shared / 'data' / 'h36m_tiny'
    given = ['--images', str(folder), '--out']
    make_shards.main([str(folder / 'test_h36m.npz'), *given, str(tmp_path / 'spin')])
    make_shards.main(
        [str(folder / 'test_h36m_body3d.npz'), *given, str(tmp_path / 'h36m'), '--layout', 'h36m']
    )
    spin = records(ShardPeople(tmp_path / 'spin'))
    h36m = records(ShardPeople(tmp_path / 'h36m'))
    joints = list(H36M_17_IN_44)
    assert len(spin) == len(h36m) == 4
    for one, other in zip(spin, h36m, strict=True):
        np.testing.assert_allclose(
            one['keypoints_3d'][joints], other['keypoints_3d'][joints], atol=1e-3
        )
        np.testing.assert_allclose(
            one['keypoints_2d'][joints], other['keypoints_2d'][joints], atol=0.1
        )


@pytest.mark.parametrize('name', ['train', 'test'])
def test_mpi_inf_3dhp_keypoints_are_projections_of_its_joints(shared, tmp_path, name):
    """2D and 3D joints land at the same places: one camera projects all of a picture's joints."""
    folder = shared / 'data' / 'mpi_inf_3dhp_tiny'
    made = ['--images', str(folder), '--out', str(tmp_path / 'out'), '--layout', 'mpi-inf']
    make_shards.main([str(folder / f'test_3dhp_{name}.npz'), *made])
    for record in records(ShardPeople(tmp_path / 'out')):
        seen = record['keypoints_2d'][:, 2] > 0
        assert seen.sum() >= 15
        joints, points = record['keypoints_3d'][seen], record['keypoints_2d'][seen]
        rays = joints[:, :2] / joints[:, 2:3]
        for axis in (0, 1):
            focal, center = np.polyfit(rays[:, axis], points[:, axis], 1)
            assert 1400 < focal < 1600 and 950 < center < 1100
            assert np.abs(focal * rays[:, axis] + center - points[:, axis]).max() < 12


# --- check_data -----------------------------------------------------------------------------------
@pytest.fixture
def data_root(tmp_path, monkeypatch):
    """A root with two training sets (one shard of the second is missing) and one of two npz."""
    root = tmp_path / 'data'
    training = root / 'hmr2_training_data'
    rows = {'one': ('one-train', 3), 'two': ('two-train', 3)}
    table = {n: released.Training(folder, shards, 0.5, 1) for n, (folder, shards) in rows.items()}
    monkeypatch.setattr(released, 'TRAINING', table)
    people.write_shards(training / 'dataset_tars' / 'one-train', 3, 4)
    people.write_shards(training / 'dataset_tars' / 'two-train', 2, 4)
    np.savez(training / released.MOCAP, body_pose=np.zeros((5, 72)), betas=np.zeros((5, 10)))
    counts = np.zeros((21, 20, 20, 20))
    counts[:, 8:12, 8:12, 8:12] = 1
    np.save(training / released.POSE_HISTOGRAM, counts)

    evaluation = {n: released.Evaluation(f'{n}.npz', 'photos', 2) for n in ('here', 'gone')}
    monkeypatch.setattr(released, 'EVALUATION', evaluation)
    (root / 'photos').mkdir()
    (root / 'hmr2_evaluation_data').mkdir()
    (root / 'photos' / 'p.jpg').write_bytes(people.jpeg())
    keypoints = people.annotation()['keypoints_2d'][None]
    np.savez(
        root / 'hmr2_evaluation_data' / 'here.npz',
        imgname=np.array(['p.jpg']),
        center=np.array([[50.0, 40]]),
        scale=np.array([80.0]),
        body_keypoints_2d=keypoints[:, :25],
        extra_keypoints_2d=keypoints[:, 25:],
    )
    return root


@pytest.mark.parametrize('full', [[], ['--full']])
def test_a_data_root_is_checked_and_drawn(data_root, tmp_path, capsys, full):
    sheet = tmp_path / 'sheet.png'
    with pytest.raises(SystemExit) as stopped:
        check_data.main([str(data_root), '--sheet', str(sheet), *full])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert 'cmu_mocap.npz: 5 poses, with betas' in out
    shown = '3 shards, 12 images, 12 people' if full else '2 shards, 8 images, 8 people'
    assert f'one: {shown}' in out
    assert 'here: 1 people' in out and 'keypoints: 44.0 per person' in out
    assert '2 problems:' in out
    assert 'two: 1 of 3 shards are missing' in out and 'fetch_training_data.sh' in out
    assert 'gone.npz' in out
    picture = cv2.imread(str(sheet))
    assert picture.shape == (20 + 8 + 8 * (160 + 8), 8 + 3 * (160 + 8), 3)


def test_bad_members_are_problems(tmp_path, capsys):
    bad = people.sample('bad', [people.annotation(scale=np.zeros(2))])
    unread = people.sample('unread', [people.annotation()], image=b'\xff\xd8 nothing')
    good = people.sample('good', [people.annotation()])
    path = people.write_shard(tmp_path / 'a.tar', [bad, unread, good])
    with pytest.raises(SystemExit) as stopped:
        check_data.main(['--shards', str(path), '--sheet', str(tmp_path / 'sheet.png')])
    out = capsys.readouterr().out
    assert stopped.value.code == 1
    assert '1 zero-size box' in out and '1 undecodable image among' in out


def test_good_data_has_no_problems(tmp_path, capsys):
    folder = people.write_shards(tmp_path / 'set')
    check_data.main(['--shards', str(folder), '--sheet', str(tmp_path / 'sheet.png')])
    assert capsys.readouterr().out.endswith('nothing is missing\n')


def test_an_empty_root_says_where_the_data_comes_from(tmp_path, capsys):
    with pytest.raises(SystemExit):
        check_data.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert 'fetch_training_data.sh' in out and 'hmr2_evaluation_data.tar.gz' in out


def test_keypoints_are_drawn_at_their_pixels():
    record = dict(
        people.annotation(),
        image=np.zeros((200, 200, 3), np.uint8),
        center=np.array([100.0, 100]),
        scale=np.array([0.8, 0.8]),
    )
    record['keypoints_2d'] = np.zeros((44, 3), np.float32)
    record['keypoints_2d'][7] = (120, 90, 1)  # left wrist
    tile = check_data.draw_person(record)
    place = np.argwhere(tile.any(-1)).mean(0)[::-1]
    # The box of 160 pixels begins at (20, 20), and a tile has 160 pixels.
    np.testing.assert_allclose(place, (100, 70), atol=0.5)
    assert tuple(tile[70, 100]) == check_data.LEFT
