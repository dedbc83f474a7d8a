"""A wheel carries the package, its data and what stands beside it, and works from anywhere."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trunchier

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ('configs', 'tools', 'model-index.yml')


def run(script, *arguments, cwd, **options):
    command = [sys.executable, '-c', script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, **options)


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    """The wheel of a copy of this checkout, unpacked."""
    copy = tmp_path_factory.mktemp('checkout')
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    ignore = shutil.ignore_patterns('__pycache__', '*.egg-info', '.mim')
    for name in ('trunchier', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    build = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'
    built = tmp_path_factory.mktemp('wheel')
    run(build, built, cwd=copy)
    (wheel,) = built.iterdir()
    assert wheel.name == f'trunchier-{trunchier.__version__}-py3-none-any.whl'
    folder = tmp_path_factory.mktemp('unpacked')
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def files(folder):
    found = (path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    return {path for path in found if not {'__pycache__', '.mim'} & {*path.parts}}


def test_the_wheel_has_every_file_of_the_package(unpacked):
    assert files(unpacked / 'trunchier') == files(ROOT / 'trunchier')


@pytest.mark.parametrize('name', CARRIED)
def test_the_wheel_carries_what_stands_beside_the_package(unpacked, name):
    source, copy = ROOT / name, unpacked / 'trunchier' / '.mim' / name
    if source.is_dir():
        assert files(copy) == files(source)
    else:
        assert copy.read_bytes() == source.read_bytes()


def test_the_wheel_states_its_licence(unpacked):
    (metadata,) = unpacked.glob('*.dist-info')
    assert list(metadata.rglob('LICENSE'))
    assert 'License: Apache-2.0' in (metadata / 'METADATA').read_text().replace('-Expression', '')


def test_a_config_in_the_wheel_builds_its_model_from_another_folder(unpacked, tmp_path):
    script = (
        'import sys, trunchier\n'
        'from pathlib import Path\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import MODELS\n'
        'home = Path(trunchier.__file__).parent\n'
        "leaf = next((home / '.mim/configs/pose2d').glob('td-hm_swin-t-s2_*.py'))\n"
        'model = MODELS.build(dict(Config.fromfile(leaf).model.backbone, init_cfg=None))\n'
        'print(home, type(model).__name__, model.num_stages)'
    )
    environment = {'PYTHONPATH': str(unpacked), 'OMP_NUM_THREADS': '1'}
    out = run(script, cwd=tmp_path, env=environment).stdout
    assert out.splitlines()[-1] == f'{unpacked / "trunchier"} TruncatedSwin 2'


def test_the_citation_names_this_version():
    assert f'\nversion: {trunchier.__version__}\n' in (ROOT / 'CITATION.cff').read_text()
