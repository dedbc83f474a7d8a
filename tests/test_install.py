"""A wheel carries the package, its data, the tools and the configs, and works from anywhere."""

import ast
import configparser
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import doctor
import pytest

import trunchier
from trunchier.files.optional import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ('configs', 'results', 'tools', 'model-index.yml')
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS='1')
# Imported packages that another one installs: the OpenMMLab stack of requirements.txt, mmengine,
# torch, torchvision, numba, opencv-python, trackers.
INSTALLED_WITH = {
    *('mmcv', 'mmdet', 'mmpose', 'mmpretrain', 'torchvision', 'xtcocotools'),
    *('rich', 'triton', 'PIL', 'llvmlite', 'supervision', 'typing_extensions'),
}
# What fsspec, of the extra `remote`, imports for an address.
REMOTE = {'aiohttp', 's3fs', 'gcsfs'}
DISTRIBUTIONS = {'cv2': 'opencv-python'}  # where the names differ
NEEDED_BY_OTHERS = {'setuptools'}  # mmengine imports its pkg_resources
# Of the extra `train`: what OpenMMLab's packages import, which come without their dependencies.
TRAIN = {
    *('mmcv-lite', 'torchvision', 'einops', 'importlib-metadata', 'json-tricks', 'mat4py'),
    *('modelindex', 'munkres', 'shapely', 'six', 'terminaltables', 'tqdm'),
}


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=dict(ENVIRONMENT, **environment),
        capture_output=True, text=True, check=True,
    )  # fmt: skip


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    """The wheel of a copy of this checkout, unpacked."""
    copy = tmp_path_factory.mktemp('checkout')
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    ignore = shutil.ignore_patterns('__pycache__', '*.egg-info', '.mim')
    for name in ('trunchier', 'configs', 'results', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    build = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'
    built = tmp_path_factory.mktemp('wheel')
    run('-c', build, built, cwd=copy)
    (wheel,) = built.iterdir()
    assert wheel.name == f'trunchier-{trunchier.__version__}-py3-none-any.whl'
    folder = tmp_path_factory.mktemp('unpacked')
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope='module')
def metadata(unpacked):
    (file,) = unpacked.glob('*.dist-info/METADATA')
    return email.message_from_string(file.read_text())


def files(folder):
    found = (path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    return {path for path in found if not {'__pycache__', '.mim'} & {*path.parts}}


def test_the_wheel_has_every_file_of_the_package(unpacked):
    found = files(unpacked / 'trunchier')
    assert found == files(ROOT / 'trunchier')
    assert {Path('py.typed'), Path('assets/body.npz'), Path('assets/NOTICE')} <= found


@pytest.mark.parametrize('name', CARRIED)
def test_the_wheel_carries_configs_tools_and_the_model_index(unpacked, name):
    source, copy = ROOT / name, unpacked / 'trunchier' / '.mim' / name
    if source.is_dir():
        assert files(copy) == files(source)
    else:
        assert copy.read_bytes() == source.read_bytes()


def test_the_wheel_states_its_license(metadata, unpacked):
    assert list(unpacked.glob('*.dist-info/**/LICENSE'))
    assert 'Apache-2.0' in (metadata['License'], metadata['License-Expression'])


def test_the_wheel_installs_the_command_trunchier(unpacked):
    (file,) = unpacked.glob('*.dist-info/entry_points.txt')
    scripts = configparser.ConfigParser()
    scripts.read(file)
    assert dict(scripts['console_scripts']) == {'trunchier': 'trunchier.__main__:main'}


def test_commands_of_the_wheel_run_from_another_folder(unpacked, tmp_path):
    command = '-m', 'trunchier', 'benchmark', 'scan', '--lengths', '4', '--channels', '8'
    quick = '--backends', 'torch', '--rounds', '1', '--seconds', '0', '--device', 'cpu'
    out = run(*command, *quick, cwd=tmp_path, PYTHONPATH=str(unpacked)).stdout
    assert '| selective_scan | 4 | 8 |' in out
    assert 'commit: no checkout' in out


def test_a_config_in_the_wheel_builds_its_model_from_another_folder(unpacked, tmp_path):
    lazy = tmp_path / 'lazy.py'
    lazy.write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n'
        '    from trunchier.configs.pose2d.swin_t_s2 import *\n'
    )
    script = (
        'from pathlib import Path\n'
        'from mmengine.config import Config\n'
        f'lazy = Config.fromfile({str(lazy)!r})\n'  # nothing has imported the package yet
        'import trunchier\n'
        'from mmengine.registry import MODELS\n'
        'home = Path(trunchier.__file__).parent\n'
        "leaf = next((home / '.mim/configs/pose2d').glob('td-hm_swin-t-s2_*.py'))\n"
        'assert lazy.model == Config.fromfile(leaf).model\n'
        'model = MODELS.build(dict(Config.fromfile(leaf).model.backbone, init_cfg=None))\n'
        'print(home, type(model).__name__, model.num_stages)'
    )
    out = run('-c', script, cwd=tmp_path, PYTHONPATH=str(unpacked)).stdout
    assert out.splitlines()[-1] == f'{unpacked / "trunchier"} TruncatedSwin 2'


# --- dependencies --------------------------------------------------------------------------------


def imported(folder):
    """Packages that Python files import, or ask for by `files.need`, anywhere in them."""
    found = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'need':
                found |= {each.value for each in node.args[:1] if isinstance(each, ast.Constant)}
    return {name.partition('.')[0] for name in found} - {*sys.stdlib_module_names, 'trunchier'}


def test_every_imported_package_is_a_dependency_and_every_dependency_is_imported(metadata):
    names = {re.match(r'[\w.-]+', row)[0] for row in metadata.get_all('Requires-Dist')}
    packages = imported(ROOT / 'trunchier') - INSTALLED_WITH
    packages |= NEEDED_BY_OTHERS
    assert {DISTRIBUTIONS.get(package, package) for package in packages} == names - TRAIN - REMOTE
    assert names >= TRAIN | REMOTE


@pytest.mark.parametrize(('package', 'extra'), EXTRAS.items())
def test_an_extra_that_an_error_names_brings_the_package(metadata, package, extra):
    rows = metadata.get_all('Requires-Dist')
    assert any(re.match(rf'{package}\b.*extra == .{extra}\W', row) for row in rows)


def test_the_doctor_looks_for_what_is_imported_only():
    known = imported(ROOT / 'trunchier') | INSTALLED_WITH | {'setuptools'}
    known = {DISTRIBUTIONS.get(package, package) for package in known}
    for package in doctor.PACKAGES:
        assert known & {*package.names}, f'nothing imports {package.names[0]}'


def test_the_citation_names_this_version():
    assert f'\nversion: {trunchier.__version__}\n' in (ROOT / 'CITATION.cff').read_text()


def test_the_requirements_of_prediction_without_torch_are_complete():
    """pip installs them with --no-deps: what one requires is in the list, too."""
    text = (ROOT / 'requirements' / 'runtime.txt').read_text()
    listed = set(re.findall(r'^([\w-]+)', text, re.M))
    assert {'numpy', 'onnxruntime', 'opencv-python-headless'} <= listed and 'torch' not in listed
    here = importlib.metadata.packages_distributions()
    installed = {name for names in here.values() for name in names}
    for name in listed & installed:
        required = importlib.metadata.requires(name) or []
        names = {re.match(r'[\w-]+', each).group() for each in required if 'extra ==' not in each}
        assert names <= listed, name
