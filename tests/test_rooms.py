"""Imports flow one way, as docs/architecture.md says, and importing is quiet and light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trunchier import zoo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'trunchier'

ROW = re.compile(r'^\| *(\d*) *\| `(\w+)` \|', re.M)  # level (empty: as above), room


def read_levels(text):
    """{room: level} of the table in docs/architecture.md."""
    levels, level = {}, None
    for number, room in ROW.findall(text):
        level = int(number) if number else level
        levels[room] = level
    return levels


LEVELS = read_levels((ROOT / 'docs' / 'architecture.md').read_text())
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
    assert room in LEVELS, f'{room} is not in the table of docs/architecture.md'
    for imported in rooms_imported(path):
        if imported != room and imported in LEVELS:
            assert LEVELS[imported] < LEVELS[room], f'{room} imports {imported}'


def test_every_room_of_the_table_exists():
    assert len(LEVELS) > 15 and min(LEVELS.values()) == 1
    for room in LEVELS:
        assert (PACKAGE / room).is_dir() or (PACKAGE / f'{room}.py').is_file(), room


def branches_on(names, tree):
    """Lines that compare a string with one of `names`, or choose among all of them by a dict."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            operands += [each for operand in operands for each in getattr(operand, 'elts', ())]
            if names & {each.value for each in operands if isinstance(each, ast.Constant)}:
                yield node.lineno
        elif isinstance(node, ast.MatchValue) and getattr(node.value, 'value', None) in names:
            yield node.lineno
        elif isinstance(node, ast.Dict):
            if names <= {getattr(key, 'value', None) for key in node.keys}:
                yield node.lineno
        elif isinstance(node, ast.Call) and names <= {each.arg for each in node.keywords}:
            yield node.lineno


@pytest.mark.parametrize('names', [set(zoo.TASKS), {row.estimator for row in zoo.TASKS.values()}])
def test_only_the_table_of_tasks_branches_on_a_task(names):
    found = [
        f'{path.relative_to(PACKAGE)}:{line}'
        for path in FILES
        if path.relative_to(PACKAGE) != Path('zoo/tasks.py')
        for line in branches_on(names, ast.parse(path.read_text()))
    ]
    assert found == []


def test_the_reader_sees_branches_of_every_form():
    code = (
        "if task == 'mesh': a\nb = c in ('pose', 'x')\nmatch f:\n case 'mesh': g\n"
        "dict(pose=1, mesh=2)\n{'pose': 1, 'mesh': 2}\nrecord['pose'] == 1\ndict(pose=1)\n"
    )
    assert sorted(branches_on({'pose', 'mesh'}, ast.parse(code))) == [1, 2, 4, 5, 6]


def run_strictly(script):
    # torch 2.1 leaves a temporary folder to the end of the process. Python 3.13 tells developers
    # of mmengine about a call of re.split, its users nothing.
    ignored = 'ignore::ResourceWarning', 'ignore::DeprecationWarning:mmengine.utils.misc'
    options = [word for text in ('error', *ignored) for word in ('-W', text)]
    command = [sys.executable, *options, '-c', script]
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
