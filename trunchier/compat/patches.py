"""What the stock OpenMMLab stack needs on current torch, mmcv-lite and numpy.

One function a symptom. Each says what goes wrong without it, where that is known upstream and on
what condition it applies; where the condition does not hold it changes nothing. `apply()` runs
them all, once, when trunchier is imported; `python tools/doctor.py` prints what became of each.
"""

import functools
import importlib
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

STAND_INS = Path(__file__).parent / 'stand_ins'


class Outcome(NamedTuple):
    """What became of a patch, and why."""

    applied: bool
    reason: str


OUTCOMES = {}  # a patch's name -> its Outcome; filled by apply()


def apply():
    """Apply each patch whose condition holds; a second call changes nothing.

    Returns:
        dict[str, Outcome]: by the name of the patch, in the order of `PATCHES`.
    """
    for patch in PATCHES:
        if patch.__name__ not in OUTCOMES:
            OUTCOMES[patch.__name__] = patch()
    return OUTCOMES


def mmcv_without_compiled_ops():
    """Importing mmpose.models fails with "No module named 'mmcv._ext'".

    mmdet, which mmpose.models imports, imports mmcv.ops, and that loads mmcv's compiled extension
    when it is imported, used or not. Here an op is looked up when it is called: calling one raises
    an error that names it.

    Upstream: https://github.com/open-mmlab/mmpose/issues/3250
    Condition: mmcv is installed without its compiled extension, as mmcv-lite is.
    """
    spec = find_spec('mmcv')
    if spec is None:
        return Outcome(False, 'mmcv is not installed')
    if any(Path(spec.origin).parent.glob('_ext*')):
        return Outcome(False, 'mmcv has its compiled ops')
    _when_imported(
        'mmcv.utils.ext_loader', lambda loader: vars(loader).update(load_ext=_absent_ops)
    )
    return Outcome(True, 'mmcv has no compiled ops (mmcv-lite)')


def _load_absent_ops(loader):
    loader.load_ext = _absent_ops


def _absent_ops(name, funcs):
    """Stands for mmcv's `load_ext`: the same attributes, each a function that raises."""
    return SimpleNamespace(**{op: _absent_op(op) for op in funcs})


def _absent_op(op):
    def absent(*args, **kwargs):
        raise RuntimeError(
            f"mmcv's compiled op '{op}' was called, but this is mmcv-lite, which has none; models "
            'that need it need the full mmcv: pip uninstall mmcv-lite, then install mmcv 2.1.0 '
            'for your torch and CUDA'
        )

    return absent


def checkpoints_under_weights_only():
    """`--resume` and tools/test.py fail on mmengine's own checkpoints: "Weights only load failed".

    Since torch 2.6, torch.load reads weights only, and refuses the log buffers and numpy values
    that mmengine stores beside them. The globals that those need are allowed, no more: the check
    stays on, and whatever else a file asks for is still refused.

    Upstream: https://github.com/open-mmlab/mmengine/issues/1655
    Condition: torch is 2.6 or newer.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return Outcome(False, f'torch {torch.__version__} does not refuse them')
    torch.serialization.add_safe_globals(checkpoint_globals())
    return Outcome(True, f'torch {torch.__version__} loads weights only')


def checkpoint_globals():
    """The globals in mmengine's checkpoints, as `torch.serialization.add_safe_globals` takes them.

    numpy has moved the functions that rebuild its values: a file written under numpy 1 asks for
    those in numpy.core, one written under numpy 2 for numpy._core, and each is read under both.
    """
    rebuild_array, rebuild_scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    return [
        HistoryBuffer,
        (_getattr_of_history_buffer, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *sorted({type(np.dtype(code)) for code in np.typecodes['All']}, key=str),
        *(
            (function, f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')
            for name, function in (('_reconstruct', rebuild_array), ('scalar', rebuild_scalar))
        ),
    ]


def _getattr_of_history_buffer(owner, name):
    """Stands for `getattr`, by which HistoryBuffer pickles its own statistics; it has no other."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise TypeError(
            f'a checkpoint asks for getattr({owner!r}, {name!r}); only the statistics of '
            'HistoryBuffer are allowed. Do not load this file unless you trust who made it'
        )
    return getattr(HistoryBuffer, name)


def xtcocotools_over_pycocotools():
    """Importing mmpose.datasets fails: no xtcocotools, or "numpy.dtype size changed".

    Its wheels are built for numpy 1 and Python 3.11 at most. pycocotools has wheels for all; the
    package in `stand_ins` gives it the interface, and the results, that mmpose expects.

    Upstream: https://github.com/jin-s13/xtcocoapi/issues/45
    Condition: mmpose is installed and xtcocotools cannot be imported.
    """
    if find_spec('mmpose') is None:
        return Outcome(False, 'mmpose is not installed')
    try:
        importlib.import_module('xtcocotools._mask')
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
    else:
        return Outcome(False, 'xtcocotools can be imported')
    for name in [name for name in sys.modules if name.partition('.')[0] == 'xtcocotools']:
        del sys.modules[name]
    sys.path.insert(0, str(STAND_INS))  # before the package that fails, in spawned workers too
    return Outcome(True, reason)


def bfloat16_outputs_to_numpy():
    """Training under bfloat16 autocast fails: "Got unsupported ScalarType BFloat16".

    mmpose's heads measure their accuracy in numpy, which has no such type; their outputs are
    widened to float32 on the way.

    Upstream: https://github.com/pytorch/pytorch/issues/110285
    Condition: mmpose is installed.
    """
    if find_spec('mmpose') is None:
        return Outcome(False, 'mmpose is not installed')
    _when_imported('mmpose.utils.tensor_utils', _widen_bfloat16)
    return Outcome(True, 'numpy has no bfloat16')


def _widen_bfloat16(tensor_utils):
    narrow = tensor_utils.to_numpy

    @functools.wraps(narrow)
    def to_numpy(x, return_device=False, unzip=False):
        return narrow(_widened(x), return_device, unzip)

    tensor_utils.to_numpy = to_numpy


def _widened(x):
    if isinstance(x, (list, tuple)):
        return type(x)(_widened(element) for element in x)
    is_bfloat16 = isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16
    return x.float() if is_bfloat16 else x


def names_of_our_pose_models():
    """MMPoseInferencer('VMPose-T-S3') fails: "Cannot find model: vmpose-t-s3 in mmpose".

    mmengine's inferencers look a name up in the model index of the one package that they serve.
    After mmpose's own models come ours, with the whole path of their configs.

    Upstream: https://github.com/open-mmlab/mmengine/issues/1581
    Condition: mmpose is installed, and our configs are where a checkout or a wheel has them.
    """
    mmpose = find_spec('mmpose')
    if mmpose is None:
        return Outcome(False, 'mmpose is not installed')
    package = Path(__file__).parents[1]
    ours = next((r for r in (package.parent, package / '.mim') if (r / 'configs').is_dir()), None)
    if ours is None:
        return Outcome(False, f'no configs beside {package}, nor in its .mim')
    mend = functools.partial(_list_ours_after, Path(mmpose.origin).parent, ours)
    _when_imported('mmengine.infer.infer', mend)
    return Outcome(True, f'ours are in {ours}')


def _list_ours_after(mmpose, ours, infer):
    of_package = infer.BaseInferencer._get_models_from_metafile

    @functools.wraps(of_package)
    def models_from_metafile(dir):
        yield from of_package(dir)
        if mmpose in (Path(dir) / 'mmpose', Path(dir).parent):
            for model in of_package(str(ours)):
                if 'pose2d' in Path(model['Config']).parts:
                    yield dict(model, Config=str(ours / model['Config']))

    infer.BaseInferencer._get_models_from_metafile = staticmethod(models_from_metafile)


def drawing_with_array_radius():
    """Drawing joints fails: "only 0-dimensional arrays can be converted to Python scalars".

    mmpose gives the radius of a circle as an array of one element, and int() of that is an error
    since numpy 2.4.

    Upstream: https://github.com/numpy/numpy/issues/10404
    Condition: mmpose is installed and numpy is 2.4 or newer.
    """
    if find_spec('mmpose') is None:
        return Outcome(False, 'mmpose is not installed')
    if digit_version(np.__version__) < digit_version('2.4'):
        return Outcome(False, f'numpy {np.__version__} converts arrays of one element')
    _when_imported('mmpose.visualization.opencv_backend_visualizer', _draw_with_scalar_radius)
    return Outcome(True, f'numpy {np.__version__} does not convert arrays of one element')


def _draw_with_scalar_radius(module):
    visualizer = module.OpencvBackendVisualizer
    draw = visualizer.draw_circles

    @functools.wraps(draw)
    def draw_circles(self, center, radius, *args, **kwargs):
        if self.backend == 'opencv':
            radius = np.asarray(radius).item()
        return draw(self, center, radius, *args, **kwargs)

    visualizer.draw_circles = draw_circles


def pkg_resources_warning():
    """Every run opens with "pkg_resources is deprecated as an API".

    mmengine asks it which packages are installed; a later mmengine asks importlib. Nothing that a
    user could do here, so that one warning is silenced.

    Upstream: https://github.com/open-mmlab/mmengine/pull/1676
    Condition: setuptools has pkg_resources (81 and older); without, doctor.py says what to do.
    """
    if find_spec('pkg_resources') is None:
        return Outcome(False, 'no pkg_resources here')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    return Outcome(True, 'mmengine imports pkg_resources')


PATCHES = (
    mmcv_without_compiled_ops,
    checkpoints_under_weights_only,
    xtcocotools_over_pycocotools,
    bfloat16_outputs_to_numpy,
    drawing_with_array_radius,
    names_of_our_pose_models,
    pkg_resources_warning,
)


def _when_imported(name, mend):
    """Call mend(module) right after the module of that name is imported; now, if it already is."""
    if name in sys.modules:
        mend(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Mender(name, mend))


class _Mender:
    """A finder that lets the others find one module, and mends it once it has run."""

    def __init__(self, name, mend):
        self.name, self.mend = name, mend

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                sys.meta_path.remove(self)
                self.mend(module)

            spec.loader.exec_module = exec_module
        return spec
