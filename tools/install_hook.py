#!/usr/bin/env python
"""Import trunchier whenever mmpose, mmdet or mmpretrain is imported in this environment.

    trunchier install-hook
    trunchier install-hook --remove

Writes two files beside the installed packages: `trunchier_hook.pth`, which Python reads when it
starts, and the module that it imports. With them every OpenMMLab script finds our modules and
patches without `custom_imports`. `trunchier run SCRIPT` does the same for one script.
"""

import argparse
import sys
import sysconfig
from pathlib import Path

from trunchier.files import whole_file

PTH, MODULE = 'trunchier_hook.pth', '_trunchier_hook'
HOOK = '''\
"""Imports trunchier before mmpose, mmdet or mmpretrain; `trunchier install-hook` wrote it."""

import importlib
import sys
import warnings


class Before:
    """A finder that finds nothing; the first import of one of `PACKAGES` makes it act, once."""

    PACKAGES = ('mmpose', 'mmdet', 'mmpretrain')

    def find_spec(self, name, path=None, target=None):
        if name in self.PACKAGES:
            sys.meta_path.remove(self)
            try:
                importlib.import_module('trunchier')
            except ImportError as error:
                remedy = '"trunchier install-hook --remove" removes this hook'
                warnings.warn(f'{name} without trunchier: {error}; {remedy}', stacklevel=2)


sys.meta_path.insert(0, Before())
'''


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier install-hook',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--remove', action='store_true', help='remove the two files')
    parser.add_argument('--folder', default=sysconfig.get_path('purelib'), help='(%(default)s)')
    args = parser.parse_args(arguments)
    pth, module = (Path(args.folder, name) for name in (PTH, f'{MODULE}.py'))
    try:
        if args.remove:
            found = [path for path in (pth, module) if path.exists()]
            for path in found:  # the .pth first: it imports the module
                path.unlink()
            print(f'removed {", ".join(map(str, found))}' if found else 'no hook was installed')
            return
        install(pth, module)
    except OSError as error:
        sys.exit(f'error: {error}')
    print(f'wrote {pth} and {module}')


def install(pth: Path, module: Path) -> None:
    """Write the module, then the `.pth` file that imports it."""
    with whole_file(module) as part:
        part.write_text(HOOK, encoding='utf-8')
    with whole_file(pth) as part:
        part.write_text(f'import {MODULE}\n', encoding='utf-8')


if __name__ == '__main__':
    main()
