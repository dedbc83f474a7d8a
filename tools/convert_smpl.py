#!/usr/bin/env python
"""Convert the official SMPL files, which are pickles, to one npz without pickles.

    trunchier convert-smpl data/smpl
    trunchier convert-smpl ~/SMPL_NEUTRAL.pkl ~/hmr2_data/SMPL_to_J19.pkl

Searches the given folders and files for the sources below, under any of their names, and writes
data/smpl/SMPL_NEUTRAL.npz, to be used as `body_model=dict(path=...)`, as the head's `mean_params`
and as `path` of AddRealPoses. Pickles are read without executing code and without chumpy. SMPL is
licensed for non-commercial research: https://smpl.is.tue.mpg.de.
"""

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trunchier.conventions import ON_DISK, person
from trunchier.files import pickles, read_npz, save_npz
from trunchier.files.processes import clean_end
from trunchier.models.mesh.body import FILE_NAME, NUM_BETAS, SHAPES, check_body
from trunchier.models.mesh.hmr2_head import MEAN_PARAMS

HMR2_DATA = 'https://people.eecs.berkeley.edu/~jathushan/projects/4dhumans/hmr2_data.tar.gz'


class Source(NamedTuple):
    content: str
    names: tuple[str, ...]  # of the official releases, case-insensitive
    origin: str
    default: str | None  # used instead; None: the file is required


SOURCES = {
    'body': Source(
        'the neutral SMPL body',
        (
            'SMPL_NEUTRAL.pkl',
            'basicModel_neutral_lbs_10_207_0_v1.0.0.pkl',
            'basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl',
        ),
        'register at https://smpl.is.tue.mpg.de and download "SMPL for Python" (version 1.0.0 of '
        'the neutral body: https://smplify.is.tue.mpg.de)',
        None,
    ),
    'joints': Source(
        'the regressor of the 19 extra joints', ('SMPL_to_J19.pkl',), f'it is in {HMR2_DATA}', None
    ),
    'mean': Source(
        'the mean parameters',
        ('smpl_mean_params.npz',),
        f'it is in {HMR2_DATA}',
        'the head starts from the mean of the embedded poses',
    ),
    'mocap': Source(
        'the real poses for the discriminator',
        ('cmu_mocap.npz',),
        'it is in the training data of https://github.com/shubham-goel/4D-Humans',
        'the embedded poses are used',
    ),
}


@clean_end()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier convert-smpl',
        description=__doc__.split('\n')[0],
        epilog='Files: '
        + '; '.join(f'{" or ".join(s.names)} ({s.content})' for s in SOURCES.values()),
    )
    parser.add_argument(
        'source', nargs='*', type=Path, default=[Path('data/smpl')], help='folders and files'
    )
    parser.add_argument('--out', type=Path, default=Path('data/smpl') / FILE_NAME, help='npz')
    arguments = parser.parse_args()
    try:
        found = find(arguments.source)
        convert(found, arguments.out)
    except (OSError, ValueError, ImportError, pickle.UnpicklingError) as error:
        sys.exit(f'error: {error}')
    for name, source in SOURCES.items():
        print(f'{source.content}: {found.get(name) or f"no {source.names[0]}, {source.default}"}')
    print(f'wrote {arguments.out}')


def find(paths: Sequence[Path]) -> dict[str, Path]:
    """Find the official files in folders and among files: paths by the keys of SOURCES.

    Raises:
        FileNotFoundError: one of `paths` does not exist, or a required file is in none of them.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f'no {path}; give the folder or the files. {_needed(SOURCES)}')
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    by_name = {path.name.lower(): path for path in reversed(files)}
    found = {}
    for key, source in SOURCES.items():
        names = [name.lower() for name in source.names if name.lower() in by_name]
        if names:
            found[key] = by_name[names[0]]
    missing = {k: s for k, s in SOURCES.items() if s.default is None and k not in found}
    if missing:
        raise FileNotFoundError(f'not found in {", ".join(map(str, paths))}: {_needed(missing)}')
    return found


def _needed(sources):
    return ' '.join(
        f'{" or ".join(s.names)} ({s.content}): {s.origin}, and put it in data/smpl.'
        for s in sources.values()
        if s.default is None
    )


def convert(found: dict[str, Path], out: Path) -> None:
    """Write the arrays of the official files to the npz `out`.

    Args:
        found: paths by the keys of SOURCES; 'mean' and 'mocap' may be absent.

    Raises:
        ValueError: other arrays, another number of vertices, or numbers that are not finite.
        pickle.UnpicklingError: a pickle with other objects than arrays, or truncated.
    """
    if out.suffix != '.npz':
        raise ValueError(f'expected an npz as output, got {out}')
    arrays = body_arrays(found['body'])
    arrays['J_regressor_extra'] = numbers(pickles.load(found['joints']), found['joints'])
    check_body(arrays, f'{found["body"]} and {found["joints"]}')
    if 'mean' in found:
        arrays |= npz_arrays(found['mean'], {name: (n,) for name, n in MEAN_PARAMS.items()})
    if 'mocap' in found:
        fields = {ON_DISK.get(name, name): person()[name].shape for name in ('pose', 'betas')}
        shapes = {name: (None, *shape) for name, shape in fields.items()}
        arrays |= npz_arrays(found['mocap'], shapes)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f'{name} has numbers that are not finite; download the files again')
    save_npz(out, **arrays)


def body_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an official body pickle, named as in `models.mesh.body.SHAPES`."""
    content = pickles.load(path)
    names = [name for name in SHAPES if name != 'J_regressor_extra']
    if not isinstance(content, dict) or not set(names) <= set(content):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path} is not an SMPL body: it holds {keys}, expected {names}')
    arrays = {name: numbers(content[name], f'{name} of {path}') for name in names}
    # Version 1.1.0 has 300 shape components; HMR uses the first ten.
    arrays['shapedirs'] = arrays['shapedirs'][..., :NUM_BETAS]
    arrays['f'] = arrays['f'].astype(np.int32)
    if arrays['kintree_table'].size:
        arrays['kintree_table'].flat[0] = -1  # stored as 2^32 - 1
    arrays['kintree_table'] = arrays['kintree_table'].astype(np.int32)
    return arrays


def numbers(value: Any, name: str | Path) -> np.ndarray:
    """`value` as float32; ValueError, which says `name`, unless it is an array of numbers."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in 'biuf':
        raise ValueError(f'{name} is not an array of numbers')
    return value.astype(np.float32)


def npz_arrays(path: Path, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """float32 arrays of an official npz; None in a shape matches any size."""
    arrays = read_npz(path, shapes)
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f'{path} has no array {name!r}, only {[*arrays]}')
        arrays[name] = array = arrays[name].astype(np.float32)
        if list(array.shape) != [size or array.shape[0] for size in shape]:
            raise ValueError(f'{name} of {path} has shape {array.shape}, expected {shape}')
    return arrays


if __name__ == '__main__':
    main()
