"""The command `trunchier` (also `python -m trunchier`): every tool, without its checkout.

    trunchier predict photo.jpg
    trunchier train CONFIG --amp

`trunchier NAME ...` runs `tools/NAME.py ...`, from the checkout or from the installed wheel.
`--offline` among the arguments forbids downloads, as TRUNCHIER_OFFLINE=1 does.
"""

import ast
import os
import runpy
import sys
from pathlib import Path

import trunchier

from .files import shipped
from .files.download import OFFLINE
from .files.version import __version__

# Of the scripts in tools/, those that are for users.
COMMANDS = (
    *('predict', 'models', 'download', 'inspect'),
    *('annotate', 'merge'),
    *('train', 'test', 'compare', 'study', 'export', 'benchmark', 'flops', 'report', 'doctor'),
    *('run', 'install_hook'),
    *('convert_weights', 'split', 'convert_smpl', 'make_synthetic', 'make_shards', 'check_data'),
)
ALIASES = {'study': 'compare'}
LIGHT = ('predict', 'models', 'download')  # begin without torch, or import it when they need it


def main() -> int:
    """Run the command that `sys.argv` names; returns the exit status, 2 for an unknown command."""
    if '--offline' in sys.argv:
        os.environ[OFFLINE] = '1'
        sys.argv.remove('--offline')
    name = sys.argv[1].replace('-', '_') if len(sys.argv) > 1 else ''
    if name in ('__version', '_V'):
        print(f'trunchier {__version__}')
        return 0
    if name not in COMMANDS:
        asked = name in ('__help', '_h')
        print(usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    path = script(name)
    if name not in LIGHT:
        try:
            trunchier.register()
        except ImportError as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
    sys.argv = [f'trunchier {sys.argv[1]}', *sys.argv[2:]]
    sys.path.insert(0, str(path if path.is_dir() else path.parent))
    try:
        runpy.run_path(str(path), run_name='__main__')
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def script(name: str) -> Path:
    """Path of the script of a command: a file, or a folder with a `__main__.py`."""
    name = ALIASES.get(name, name)
    for candidate in (f'tools/{name}.py', f'tools/{name}'):
        path = shipped.of_repository(candidate)
        if path.exists():
            return path
    raise FileNotFoundError(f'no {path} nor {path}.py; reinstall trunchier, or run a checkout')


def usage() -> str:
    """All commands, with the first line of the docstring of each."""
    lines = ['usage: trunchier [--offline] COMMAND ... (trunchier COMMAND --help)', '']
    for name in COMMANDS:
        path = script(name)
        source = (path / '__main__.py' if path.is_dir() else path).read_text(encoding='utf-8')
        summary = (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]
        lines.append(f'  {name.replace("_", "-"):16} {summary}')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
