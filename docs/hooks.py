"""MkDocs hooks: reference pages with one mkdocstrings line per module; details of the markup."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PACKAGE = Path(__file__).resolve().parents[1] / 'trunchier'
WEB = PACKAGE.parent / 'examples' / 'web' / 'dist'  # of `make web`
EMBEDDED = (
    '<iframe src="demo/index.html" allow="camera" title="Poses and bodies" loading="lazy" '
    'style="width: 100%; height: 44rem; border: 0; border-radius: 12px"></iframe>\n\n'
    '<a href="demo/index.html" target="_blank">Open the page alone</a>: faster, with threads.'
)


def functions() -> list[str]:
    """Full names of the functions and classes that `trunchier` itself offers."""
    tree = ast.parse((PACKAGE / '__init__.py').read_text())
    found = []
    for node in tree.body:  # such as `from .deploy.fuse import deploy`, and the dict LAZY
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            found += [f'trunchier.{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'LAZY':
            lazy = ast.literal_eval(node.value)
            found += [f'trunchier.{module}.{name}' for name, module in lazy.items()]
    return [name for name in found if '._' not in name]


def pages() -> dict[str, list[str]]:
    """Page name -> what is on it: for `trunchier` its functions, else the modules of a package."""
    found = {'trunchier': ['trunchier', *functions()]}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        if any(part[0] == '_' for part in parts[:-1]) or 'stand_ins' in parts or parts[0][0] == '_':
            continue
        if parts[0] == 'configs' and parts[1:] != ('__init__',):  # one line per model
            continue
        if parts[-1] == '__init__':
            parts = parts[:-1]
        if not parts[-1].startswith('_'):
            found.setdefault(parts[0], []).append('.'.join(['trunchier', *parts]))
    return {page: sorted(names) for page, names in found.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation."""
    (section,) = (item for item in config.nav if 'Reference' in item)
    section['Reference'] = [{page: f'reference/{page}.md'} for page in pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/: pages of the reference, SECURITY.md, the page for browsers."""
    from mkdocs.structure.files import File

    security = (PACKAGE.parent / 'SECURITY.md').read_text()
    files.append(File.generated(config, 'security.md', content=security))
    for path in sorted(WEB.rglob('*')):
        if path.is_file():
            name = f'demo/{path.relative_to(WEB).as_posix()}'
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for page, modules in pages().items():
        title = page if page == 'trunchier' else f'trunchier.{page}'
        text = '\n\n'.join([f'# {title}', *(f'::: {module}' for module in modules)])
        files.append(File.generated(config, f'reference/{page}.md', content=text + '\n'))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Embed the page for browsers where `make web` has built it; drop what an info string says
    beyond the language (`python run`), which is for tests.
    """
    embedded = EMBEDDED if (WEB / 'models.json').is_file() else ''
    markdown = markdown.replace('<!-- the page -->', embedded)
    return re.sub(r'^```(\w+) .*$', r'```\1', markdown, flags=re.M)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Keep names of models in benchmark tables on one line, see site.css."""
    is_benchmark = page.file.src_uri.startswith('benchmarks/')
    return f'<div class="names">{html}</div>' if is_benchmark else html
