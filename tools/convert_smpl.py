#!/usr/bin/env python
"""Make one clean npz of the official SMPL files, which may not be passed on and are pickles.

    python tools/convert_smpl.py data/smpl
    python tools/convert_smpl.py ~/SMPL_NEUTRAL.pkl ~/hmr2_data/SMPL_to_J19.pkl

Looks for the files below, under any of their names, in the folders and files given, and writes
data/smpl/SMPL_NEUTRAL.npz. That file then serves as `body_model=dict(path=...)`, as the head's
`mean_params` and as `path` of AddRealPoses. The pickles are read without running anything that is
in them, and without chumpy. SMPL is for non-commercial research: https://smpl.is.tue.mpg.de.
"""

import argparse
import os
import pickle
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trunchier.files import pickles
from trunchier.models.mesh.body import FILE_NAME, NUM_BETAS, SHAPES, check_body
from trunchier.models.mesh.hmr2_head import MEAN_PARAMS

HMR2_DATA = 'https://people.eecs.berkeley.edu/~jathushan/projects/4dhumans/hmr2_data.tar.gz'


class Source(NamedTuple):
    what: str
    names: tuple  # of the official releases; the case does not matter
    where: str
    instead: str | None  # what happens without it; None: needed


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
        'the embedded poses serve',
    ),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Files: '
        + '; '.join(f'{" or ".join(s.names)} ({s.what})' for s in SOURCES.values()),
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
        sys.exit(f'convert_smpl.py: {error}')
    for name, source in SOURCES.items():
        print(f'{source.what}: {found.get(name) or f"no {source.names[0]}, {source.instead}"}')
    print(f'wrote {arguments.out}')


def find(places):
    """Paths of the official files by the keys of SOURCES.

    Args:
        places: folders and files.

    Raises:
        FileNotFoundError: no such place, or a file that is needed is in none of them.
    """
    files = []
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f'no {place}; name the folder or the files. {_needed(SOURCES)}')
        files += sorted(place.iterdir()) if place.is_dir() else [place]
    by_name = {path.name.lower(): path for path in reversed(files)}
    found = {}
    for key, source in SOURCES.items():
        paths = [by_name[name.lower()] for name in source.names if name.lower() in by_name]
        if paths:
            found[key] = paths[0]
    missing = {k: s for k, s in SOURCES.items() if s.instead is None and k not in found}
    if missing:
        raise FileNotFoundError(f'not found in {", ".join(map(str, places))}: {_needed(missing)}')
    return found


def _needed(sources):
    return ' '.join(
        f'{" or ".join(s.names)} ({s.what}): {s.where}, and put it in data/smpl.'
        for s in sources.values()
        if s.instead is None
    )


def convert(found, out):
    """Write the arrays of the official files to `out`, whole or not at all.

    Args:
        found: paths by the keys of SOURCES; 'mean' and 'mocap' may be absent.
        out: npz.

    Raises:
        ValueError: a file with other arrays, another vertex count or numbers that are not finite.
        pickle.UnpicklingError: a pickle that holds more than arrays, or is cut off.
    """
    if out.suffix != '.npz':
        raise ValueError(f'the output is an npz; got {out}')
    arrays = body_arrays(found['body'])
    arrays['J_regressor_extra'] = _dense(pickles.load(found['joints']))
    if arrays['J_regressor_extra'].shape != SHAPES['J_regressor_extra']:
        raise ValueError(
            f'{found["joints"]} has shape {arrays["J_regressor_extra"].shape}, '
            f'wanted {SHAPES["J_regressor_extra"]}'
        )
    check_body(arrays, found['body'])
    if 'mean' in found:
        arrays |= npz_arrays(found['mean'], {name: (n,) for name, n in MEAN_PARAMS.items()})
    if 'mocap' in found:
        shapes = {'body_pose': (None, 72), 'betas': (None, NUM_BETAS)}
        arrays |= npz_arrays(found['mocap'], shapes)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f'{name} holds numbers that are not finite; fetch the files again')

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix('.part.npz')
    try:
        np.savez(part, **arrays)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def body_arrays(path):
    """Arrays of an official body pickle, of the names in `models.body.SHAPES`."""
    content = pickles.load(path)
    names = [name for name in SHAPES if name != 'J_regressor_extra']
    if not isinstance(content, dict) or not set(names) <= set(content):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path} is not an SMPL body: it holds {keys}, wanted {names}')
    arrays = {name: _dense(content[name]) for name in names}
    # Version 1.1.0 has 300 shape components, of which HMR uses the first ten.
    arrays['shapedirs'] = arrays['shapedirs'][..., :NUM_BETAS]
    arrays['f'] = arrays['f'].astype(np.int32)
    parents = np.asarray(content['kintree_table']).astype(np.int64)
    parents[0, 0] = -1  # stored as 2^32 - 1
    arrays['kintree_table'] = parents.astype(np.int32)
    return arrays


def _dense(array):
    return np.asarray(array.toarray() if hasattr(array, 'toarray') else array, np.float32)


def npz_arrays(path, shapes):
    """float32 arrays of an official npz; None in a shape stands for any number."""
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name, shape in shapes.items():
            if name not in file:
                raise ValueError(f'{path} has no array {name!r}, only {file.files}')
            array = file[name].astype(np.float32)
            wanted = [size or array.shape[0] for size in shape]
            if list(array.shape) != wanted:
                raise ValueError(f'{name} of {path} has shape {array.shape}, wanted {shape}')
            arrays[name] = array
    return arrays


if __name__ == '__main__':
    main()
