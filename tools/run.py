#!/usr/bin/env python
"""Run any OpenMMLab script with trunchier's modules and patches in place.

    trunchier run mmpose::analysis_tools/get_flops.py configs/pose2d/NAME.py --input-shape 256 192
    trunchier run ../mmpose/tools/misc/publish_model.py in.pth out.pth

For scripts that import mmpose, or read a checkpoint, before they read a config with
`custom_imports`. PACKAGE::NAME is a script that the installed PACKAGE carries in `.mim/tools`.
Checkpoints that the script gives to torch.load are read as ours are: weights and plain data only.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from trunchier.files import need  # any import of the package registers its modules
from trunchier.weights.load import read_weights


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ('-h', '--help'):
        print(f'usage: trunchier run SCRIPT ...\n\n{__doc__}')
        sys.exit(0 if arguments else 2)
    try:
        path = script(arguments[0])
    except (FileNotFoundError, ImportError) as error:
        sys.exit(f'error: {error}')
    sys.argv = [str(path), *arguments[1:]]
    sys.path[0] = str(path.parent)
    torch.load = reading_paths_safely(torch.load)
    runpy.run_path(str(path), run_name='__main__')


def script(name: str) -> Path:
    """Path of a script: PATH, or PACKAGE::NAME in `.mim/tools` of an installed package.

    Raises:
        FileNotFoundError: no such file.
        ImportError: no such package.
    """
    package, _, inner = name.rpartition('::')
    if not package:
        path, others = Path(name), []
    else:
        tools = Path(need(package, f'running {name}').__file__).parent / '.mim' / 'tools'
        path = tools / inner
        others = sorted(each.relative_to(tools).as_posix() for each in tools.rglob('*.py'))
    if not path.is_file():
        hint = f'; {package} has {", ".join(others)}' if others else ''
        raise FileNotFoundError(f'no script {path}{hint}')
    return path.resolve()


def reading_paths_safely(load: Callable) -> Callable:
    """`torch.load` refuses what mmengine saves beside the weights; our reader does not."""

    def load_checkpoint(file, *args, **options):
        if isinstance(file, str | Path):
            return read_weights(file)
        return load(file, *args, **options)

    return load_checkpoint


if __name__ == '__main__':
    main()
