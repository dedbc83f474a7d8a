"""The house keeps its order: imports flow one way, and importing it is quiet and light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'trunchier'

# A room may import what stands in an earlier line; not its neighbours, not what comes later.
ROOMS = (
    ('compat', 'conventions', 'files', 'zoo'),
    ('geometry',),
    ('ops',),
    ('weights',),
    ('datasets', 'engine', 'metrics', 'models'),
    ('render',),
    ('synthetic',),
    ('deploy',),
    ('visualization',),
    ('inference',),
    ('__main__',),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(
    path for path in PACKAGE.rglob('*.py') if path.parent != PACKAGE or path.stem[0] != '_'
)

# What `import trunchier` must do without; a process of its own tells.
NOT_NEEDED = {
    *('mmcv', 'mmdet', 'mmpose', 'mmpretrain', 'torchvision', 'timm', 'xtcocotools', 'pycocotools'),
    *('fvcore', 'numba', 'onnx', 'onnxruntime', 'safetensors', 'scipy', 'smplx', 'trimesh'),
    *('webdataset', 'av', 'viser'),
}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def rooms_imported(path):
    """The rooms that the file imports anywhere in it, functions included."""
    package = ['trunchier', *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name.split('.') for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split('.') if node.module else [])
            modules = [base + [alias.name] for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == 'trunchier' and len(module) > 1:
                yield module[1]


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_flow_one_way(path):
    room = room_of(path)
    assert room in LEVELS, f'{room} has no place yet: give it one in ROOMS and docs/architecture.md'
    for imported in rooms_imported(path):
        if imported != room and imported in LEVELS:
            assert LEVELS[imported] < LEVELS[room], f'{room} imports {imported}'


def test_the_reader_sees_imports_of_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'PACKAGE', tmp_path)
    (tmp_path / 'models').mkdir()
    file = tmp_path / 'models' / 'swin.py'
    file.write_text(
        'import trunchier.zoo\nfrom trunchier import ops\nfrom trunchier.geometry import a\n'
        'from .. import metrics\nfrom ..training import b\nfrom . import body\nimport torch\n'
        'def f():\n    from ..synthetic.body import c\n'
    )
    found = set(rooms_imported(file))
    assert found == {'zoo', 'ops', 'geometry', 'metrics', 'training', 'models', 'synthetic'}


def run_strictly(script):
    # torch 2.1 leaves a temporary folder to the end of the process.
    command = [sys.executable, '-W', 'error', '-W', 'ignore::ResourceWarning', '-c', script]
    return subprocess.run(command, capture_output=True, text=True, cwd='/')


def test_importing_is_quiet_and_needs_torch_and_mmengine_alone():
    script = f'''
import sys

class Without:
    """A finder that does not find some packages, as if they were not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {NOT_NEEDED}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
import trunchier
from mmengine.registry import MODELS
assert MODELS.get('TruncatedSwin') is trunchier.models.TruncatedSwin
'''
    run = run_strictly(script)
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')


def test_importing_with_everything_installed_is_quiet_and_imports_no_other_library():
    script = (
        'import sys, trunchier\n'
        "print([m for m in ('mmcv', 'mmpose', 'mmdet', 'numba', 'matplotlib') if m in sys.modules])"
    )
    run = run_strictly(script)
    assert (run.returncode, run.stdout, run.stderr) == (0, '[]\n', '')
