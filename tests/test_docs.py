"""The documentation: what it says runs, links lead somewhere, generated parts are up to date."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml
from mmengine.registry import init_default_scope

from trunchier import zoo
from trunchier.inference.command import main as predict
from trunchier.ops import scan

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob('*.md'), *DOCS.rglob('*.md')))
BLOCK = re.compile(r'^```(\w*)( run)?( slow)?\n(.*?)^```$', re.S | re.M)


def load(name):
    """The script docs/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f'docs_{name}', DOCS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, language):
    """(says that it runs, is slow, code) of each fenced block of a language."""
    found = BLOCK.findall((ROOT / page).read_text())
    return [(bool(runs), bool(slow), code) for lang, runs, slow, code in found if lang == language]


def that_run(language):
    """(page, code) of each page with blocks that run; with its slow ones in a slow test."""
    parameters = []
    for page in PAGES:
        found = [(slow, code) for runs, slow, code in blocks(page, language) if runs]
        fast = [code for slow, code in found if not slow]
        if fast:
            parameters.append(pytest.param(page, '\n'.join(fast), id=page))
        if len(fast) < len(found):
            code = '\n'.join(code for _, code in found)
            parameters.append(pytest.param(page, code, marks=pytest.mark.slow, id=f'{page}-all'))
    return parameters


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A working directory with a photo.jpg."""
    shutil.copy(DOCS / 'demo.jpg', tmp_path / 'photo.jpg')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'photo.jpg'


def test_blocks_are_found():
    assert {p.id for p in that_run('python')} >= {
        'README.md',
        'docs/quickstart.md',
        *(f'docs/contributing/{name}.md' for name in ('backbone', 'backend', 'task', 'dataset')),
    }


@pytest.fixture
def tables():
    """Rows that an example adds to the package's tables are removed after it."""
    tables = zoo.TASKS, scan.MAP_BACKENDS, scan.MODULES
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.mark.parametrize(('page', 'code'), that_run('python'))
def test_python_blocks_run(page, code, photo, tables):
    pytest.importorskip('mmpose')
    init_default_scope('mmpose')
    exec(compile(code, f'<{page}>', 'exec'), {'__name__': page})
    assert 'assert ' in code or 'print(' in code, 'an example that shows nothing'


@pytest.mark.parametrize(('page', 'code'), that_run('sh'))
def test_shell_blocks_run(page, code, photo):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    done = subprocess.run(
        ['sh', '-e', '-c', code], capture_output=True, text=True, env={**os.environ, 'PATH': path}
    )
    assert done.returncode == 0, done.stderr
    assert Path('outputs/predictions/photo.json').is_file()


def test_the_site_shows_blocks_that_run_as_code():
    strip = load('hooks').on_page_markdown
    assert strip('a\n```python run slow\nb\n```\n') == 'a\n```python\nb\n```\n'


@pytest.mark.parametrize('page', PAGES)
def test_python_blocks_are_python(page):
    assert all(ast.parse(code) for _, _, code in blocks(page, 'python'))


def slug(heading):
    """The anchor of a heading, as mkdocs and GitHub make it."""
    text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).replace('`', '')
    text = unicodedata.normalize('NFKD', text).encode('ascii', 'ignore').decode()
    return re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', text).strip().lower())


def anchors(path):
    text = BLOCK.sub('', path.read_text())
    return {slug(heading) for heading in re.findall(r'^#+ (.*)$', text, re.M)}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    generated = {DOCS / 'reference' / f'{name}.md' for name in load('hooks').pages()}
    dead = []
    for link in re.findall(r'\]\(([^)\s]+)\)', BLOCK.sub('', path.read_text())):
        if link.startswith(('http', 'mailto')):
            continue
        file, _, anchor = link.partition('#')
        target = Path(os.path.normpath(path.parent / file)) if file else path
        known = target in generated or target.exists()
        if not known or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_is_in_the_navigation():
    def files(items):
        for item in items:
            value = next(iter(item.values())) if isinstance(item, dict) else item
            yield from [value] if isinstance(value, str) else files(value)

    nav = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']
    pages = [page.removeprefix('docs/') for page in PAGES if page.startswith('docs/')]
    assert sorted(files(nav)) == sorted([*pages, 'security.md'])  # of SECURITY.md, by hooks.py


def test_the_reference_has_every_public_module():
    pages = load('hooks').pages()
    assert {'trunchier', 'models', 'ops', 'conventions'} <= set(pages)
    assert 'trunchier.models.backbones.swin' in pages['models']
    listed = [module for modules in pages.values() for module in modules]
    assert len(listed) == len(set(listed))
    assert not any('stand_ins' in module or '._' in module for module in listed)


@pytest.mark.parametrize(
    'page', ['README.md', 'docs/checkpoints.md', 'docs/recipes.md', 'docs/troubleshooting.md']
)
def test_generated_parts_are_up_to_date(page):
    generate = load('generate')
    text = (ROOT / page).read_text()
    assert generate.PART.search(text)
    assert generate.rewritten(text) == text, 'run python docs/generate.py'


def test_documented_options_of_predict_exist(capsys):
    with pytest.raises(SystemExit):
        predict(['--help'])
    options = set(re.findall(r'--[a-z][a-z-]*', capsys.readouterr().out))
    page = (DOCS / 'predict.md').read_text().partition('## Weights that come')[0]
    used = set(re.findall(r'`(--[a-z][a-z-]*)', page))
    for page in PAGES:
        for line in re.findall(r'^trunchier predict (.*)$', (ROOT / page).read_text(), re.M):
            used |= set(re.findall(r'--[a-z][a-z-]*', line))
    assert used and used <= options


def test_troubleshooting_names_the_errors_that_people_search_for():
    text = (DOCS / 'troubleshooting.md').read_text()
    for symptom in (
        "No module named 'mmcv._ext'",
        'chumpy',
        'weights_only',
        'numpy.dtype size changed',
        'EGL',
        'selective_scan_cuda',
    ):
        assert symptom in text
