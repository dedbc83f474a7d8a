import importlib.util
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from trunchier.models.mesh.body import EMBEDDED_BODY, BodyModel, read_body
from trunchier.models.mesh.hmr2_head import read_mean_params

pytest.importorskip('smplx')
sparse = pytest.importorskip('scipy.sparse')

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_smpl.py'
spec = importlib.util.spec_from_file_location('convert_smpl', TOOL)
convert_smpl = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert_smpl)


def official_arrays():
    """The embedded body's numbers as SMPL's release has them, with 300 shape components."""
    arrays = read_body(EMBEDDED_BODY)
    rng = np.random.default_rng(0)
    parents = arrays['kintree_table'].astype(np.int64)
    parents[0, 0] = 2**32 - 1
    more = np.zeros((6890, 3, 290))
    return {
        'v_template': arrays['v_template'].astype(np.float64),
        'shapedirs': np.concatenate((arrays['shapedirs'], more), -1),
        'posedirs': 0.001 * rng.standard_normal((6890, 3, 207)),
        'J_regressor': sparse.csc_matrix(arrays['J_regressor']),
        'weights': arrays['weights'],
        'kintree_table': parents.astype(np.uint32),
        'f': arrays['f'].astype(np.uint32),
        'bs_type': 'lrotmin',
    }, arrays['J_regressor_extra']


def chumpy_pickle(arrays, **constants):
    """A pickle as Python 2 wrote it, in which `constants` are objects of chumpy."""
    modules = {name: types.ModuleType(name) for name in ('chumpy', 'chumpy.ch')}
    modules['chumpy.ch'].Ch = type('Ch', (), {'__module__': 'chumpy.ch'})
    sys.modules.update(modules)
    try:
        for name, array in constants.items():
            arrays[name] = modules['chumpy.ch'].Ch()
            arrays[name].x = array
        return pickle.dumps(arrays, protocol=2)
    finally:
        for name in modules:
            del sys.modules[name]


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    """A folder with files like the official ones."""
    folder = tmp_path_factory.mktemp('official')
    arrays, extra = official_arrays()
    written = chumpy_pickle(dict(arrays), shapedirs=arrays['shapedirs'], weights=arrays['weights'])
    (folder / 'SMPL_NEUTRAL.pkl').write_bytes(written)
    (folder / 'SMPL_to_J19.pkl').write_bytes(pickle.dumps(extra, protocol=2))
    np.savez(folder / 'smpl_mean_params.npz', pose=np.ones(144), shape=np.zeros(10), cam=np.ones(3))
    np.savez(folder / 'cmu_mocap.npz', body_pose=np.ones((5, 72)), betas=np.ones((5, 10)))
    return folder


@pytest.fixture
def copy(release, tmp_path):
    """A folder of links to the release, in which a test may change things."""
    for path in release.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['convert_smpl.py', *map(str, arguments)])
    convert_smpl.main()


def test_the_npz_is_a_body_mean_parameters_and_mocap(release, tmp_path):
    out = tmp_path / 'data' / 'SMPL_NEUTRAL.npz'
    command = [sys.executable, TOOL, release, '--out', out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'wrote {out}' in done.stdout
    assert list(out.parent.iterdir()) == [out]

    arrays, extra = official_arrays()
    ours = read_body(out)
    assert np.array_equal(ours['J_regressor'], arrays['J_regressor'].toarray())
    assert np.array_equal(ours['posedirs'], arrays['posedirs'].astype(np.float32))
    assert np.array_equal(ours['shapedirs'], arrays['shapedirs'][..., :10])
    assert np.array_equal(ours['J_regressor_extra'], extra)
    assert read_mean_params(out)['pose'].tolist() == [[1] * 144]
    with np.load(out) as file:
        assert file['body_pose'].shape == (5, 72)
        assert all(array.dtype.kind in 'fi' for array in file.values())

    eye, betas = torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10)
    converted = BodyModel(out)(eye[:, :1], eye[:, 1:], betas)
    embedded = BodyModel()(eye[:, :1], eye[:, 1:], betas)
    assert torch.equal(converted['joints'], embedded['joints'])


@pytest.mark.parametrize('name', convert_smpl.SOURCES['body'].names)
@pytest.mark.parametrize('change', [str, str.upper])
def test_body_is_found_under_every_official_name(copy, name, change):
    (copy / 'SMPL_NEUTRAL.pkl').rename(copy / change(name))
    assert convert_smpl.find([copy])['body'] == copy / change(name)


def test_files_may_be_listed_one_by_one(release, tmp_path):
    found = convert_smpl.find([release / 'SMPL_to_J19.pkl', release / 'SMPL_NEUTRAL.pkl'])
    assert set(found) == {'body', 'joints'}
    convert_smpl.convert(found, tmp_path / 'body.npz')
    BodyModel(tmp_path / 'body.npz')


# bad input


def test_missing_files_are_named_with_their_origin(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, '--out', tmp_path / 'out.npz')
    for words in (
        'SMPL_NEUTRAL.pkl or basicModel_neutral_lbs_10_207_0_v1.0.0.pkl',
        'https://smpl.is.tue.mpg.de',
        'SMPL_to_J19.pkl',
        'put it in data/smpl',
    ):
        assert words in str(stop.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no .*absent; .*smpl.is.tue.mpg.de'):
        convert_smpl.find([tmp_path / 'absent'])


def test_missing_optional_files_are_replaced_and_reported(monkeypatch, copy, capsys):
    (copy / 'cmu_mocap.npz').unlink()
    run(monkeypatch, copy, '--out', copy / 'out.npz')
    assert 'no cmu_mocap.npz, the embedded poses are used' in capsys.readouterr().out


def replace(path, content):
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)


def changed_body(**changes):
    arrays = {**official_arrays()[0], **changes}
    return pickle.dumps({name: array for name, array in arrays.items() if array is not None})


class Command:
    def __reduce__(self):
        return print, ('this must not be printed',)


BAD = {
    'another vertex count': (
        'SMPL_NEUTRAL.pkl',
        lambda: changed_body(v_template=np.zeros((10475, 3))),
        r'v_template of .*SMPL_NEUTRAL.pkl and .* has shape \(10475, 3\), expected \(6890, 3\)',
    ),
    'another skeleton': (
        'SMPL_NEUTRAL.pkl',
        lambda: changed_body(kintree_table=np.zeros((2, 24))),
        'not the skeleton of SMPL',
    ),
    'no body': ('SMPL_NEUTRAL.pkl', lambda: changed_body(weights=None), 'is not an SMPL body'),
    'a number': ('SMPL_NEUTRAL.pkl', lambda: pickle.dumps(3), 'it holds int'),
    'not finite': (
        'SMPL_NEUTRAL.pkl',
        lambda: changed_body(v_template=np.full((6890, 3), np.nan)),
        'v_template of .* has values that are not finite numbers',
    ),
    'forbidden class': (
        'SMPL_NEUTRAL.pkl',
        lambda: pickle.dumps({'v_template': Command()}),
        'SMPL_NEUTRAL.pkl: forbidden class builtins.print',
    ),
    'cut off': ('SMPL_NEUTRAL.pkl', lambda: changed_body()[:1000], 'not a complete pickle'),
    'another regressor': (
        'SMPL_to_J19.pkl',
        lambda: pickle.dumps(np.zeros((14, 6890))),
        r'J_regressor_extra of .*SMPL_to_J19.pkl has shape \(14, 6890\), expected \(19, 6890\)',
    ),
    'mean parameters of another size': (
        'smpl_mean_params.npz',
        lambda: dict(pose=np.zeros(72), shape=np.zeros(10), cam=np.zeros(3)),
        r'pose of .*smpl_mean_params.npz has shape \(72,\), expected \(144,\)',
    ),
    'mocap without betas': (
        'cmu_mocap.npz',
        lambda: dict(body_pose=np.zeros((5, 72))),
        "cmu_mocap.npz has no array 'betas'",
    ),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_an_error_and_nothing_is_written(copy, tmp_path_factory, name, capfd):
    file, content, message = BAD[name]
    replace(copy / file, content())
    out = tmp_path_factory.mktemp('out') / 'SMPL_NEUTRAL.npz'
    with pytest.raises((ValueError, pickle.UnpicklingError), match=message):
        convert_smpl.convert(convert_smpl.find([copy]), out)
    assert not list(out.parent.iterdir())
    assert capfd.readouterr().out == ''


def test_a_failure_keeps_the_old_file(copy):
    out = copy / 'SMPL_NEUTRAL.npz'
    out.write_bytes(b'old')
    replace(copy / 'cmu_mocap.npz', {'body_pose': np.zeros((5, 69)), 'betas': np.zeros((5, 10))})
    with pytest.raises(ValueError, match='expected'):
        convert_smpl.convert(convert_smpl.find([copy]), out)
    assert out.read_bytes() == b'old'
