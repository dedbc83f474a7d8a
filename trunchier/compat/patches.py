"""Patches that let the stock OpenMMLab stack run on current torch, mmcv-lite and numpy.

One function a symptom: its docstring states the symptom, the upstream issue and the condition under
which the patch applies; otherwise it changes nothing. `apply()` runs all of them once, when
trunchier is imported; `trunchier doctor` prints the outcome of each.
"""

import functools
import importlib
import importlib.metadata
import sys
import warnings
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import config
from mmengine.config import utils as config_utils
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import load
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.utils import digit_version, is_seq_of

PACKAGE = Path(__file__).resolve().parents[1]
STAND_INS = PACKAGE / 'compat' / 'stand_ins'


class Outcome(NamedTuple):
    """Whether a patch was applied, and why."""

    applied: bool
    reason: str


OUTCOMES: dict[str, Outcome] = {}  # a patch's name -> its Outcome; filled by apply()


def apply() -> dict[str, Outcome]:
    """Apply each patch whose condition holds; a second call changes nothing.

    Returns:
        {name of a patch: its Outcome}, in the order of `PATCHES`.
    """
    for patch in PATCHES:
        if patch.__name__ not in OUTCOMES:
            OUTCOMES[patch.__name__] = patch()
    return OUTCOMES


def mmcv_without_compiled_ops() -> Outcome:
    """Importing mmpose.models fails with "No module named 'mmcv._ext'".

    mmpose.models imports mmdet, which imports mmcv.ops, which loads mmcv's compiled extension,
    used or not. With this patch an op is looked up when it is called; calling one raises an error
    that names it. `mmcv.utils.collect_env` reports the compilers of the ops as "n/a".

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
    bricks = sys.modules.get('mmcv.cnn.bricks.transformer')
    if bricks is not None and not hasattr(bricks, 'MultiScaleDeformableAttention'):
        # It was imported before this patch and has caught the error; mmdet imports the class there.
        ops = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
        bricks.MultiScaleDeformableAttention = ops.MultiScaleDeformableAttention
    return Outcome(True, 'mmcv has no compiled ops (mmcv-lite)')


def _absent_ops(name, funcs):
    """Stand-in of mmcv's `load_ext`: the same attributes, each a function that raises."""
    versions = ('get_compiler_version', 'get_compiling_cuda_version')
    return SimpleNamespace(
        **{op: (lambda: 'n/a') if op in versions else _absent_op(op) for op in funcs}
    )


def _absent_op(op):
    def absent(*args, **kwargs):
        raise RuntimeError(
            f"mmcv's compiled op '{op}' was called, but mmcv-lite has no compiled ops; models "
            'that call it require the full mmcv, built for your torch: see "The full mmcv" in '
            'docs/openmmlab.md'
        )

    return absent


def xtcocotools_over_pycocotools() -> Outcome:
    """Importing mmpose.datasets fails: no xtcocotools, or "numpy.dtype size changed".

    Its wheels are built for numpy 1 and for Python 3.11 at most. pycocotools has wheels for all
    versions; the package in `stand_ins` gives it the interface and the results that mmpose
    expects.

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


def bfloat16_outputs_to_numpy() -> Outcome:
    """Training under bfloat16 autocast fails: "Got unsupported ScalarType BFloat16".

    mmpose's heads compute their accuracy in numpy, which has no bfloat16; their outputs are
    converted to float32 first.

    Upstream: https://github.com/pytorch/pytorch/issues/110285
    Condition: mmpose is installed.
    """
    if find_spec('mmpose') is None:
        return Outcome(False, 'mmpose is not installed')
    _when_imported('mmpose.utils.tensor_utils', _widen_bfloat16)
    return Outcome(True, 'numpy has no bfloat16')


def _widen_bfloat16(tensor_utils):
    narrow = tensor_utils.to_numpy
    importers = [
        module
        for name, module in sys.modules.items()
        if name.startswith('mmpose.') and getattr(module, 'to_numpy', None) is narrow
    ]

    @functools.wraps(narrow)
    def to_numpy(x, return_device=False, unzip=False):
        return narrow(_widened(x), return_device, unzip)

    for module in (tensor_utils, *importers):  # the heads too, if they were imported before
        module.to_numpy = to_numpy


def _widened(x):
    if isinstance(x, (list, tuple)):
        return type(x)(_widened(element) for element in x)
    is_bfloat16 = isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16
    return x.float() if is_bfloat16 else x


def names_of_our_pose_models() -> Outcome:
    """MMPoseInferencer('VMPose-T-S3') fails: "Cannot find model: vmpose-t-s3 in mmpose".

    mmengine's inferencers look a name up in the model index of one package. This adds our models
    after mmpose's own, with the full paths of their configs and of the weights that ship here. A
    config of ours without weights is refused: mmpose would predict with random ones. A name that
    mmpose has too (`ViTPose-S` is one) remains mmpose's.

    Upstream: https://github.com/open-mmlab/mmengine/issues/1581
    Condition: mmpose is installed, and our configs are found beside the package or in its wheel.
    """
    mmpose = find_spec('mmpose')
    if mmpose is None:
        return Outcome(False, 'mmpose is not installed')
    ours = _folder_with_configs()
    if ours is None:
        return Outcome(False, f'no configs beside {PACKAGE}, nor in its .mim')
    patch = functools.partial(_list_ours_after, Path(mmpose.origin).parent, ours)
    _when_imported('mmengine.infer.infer', patch)
    return Outcome(True, f'ours are in {ours}')


def _folder_with_configs():
    """The checkout, or `.mim` of a wheel; None: neither has configs."""
    folders = (PACKAGE.parent, PACKAGE / '.mim')
    return next((folder for folder in folders if (folder / 'configs').is_dir()), None)


def _list_ours_after(mmpose, ours, infer):
    of_package = infer.BaseInferencer._get_models_from_metafile

    @functools.wraps(of_package)
    def models_from_metafile(dir):
        yield from of_package(dir)
        if mmpose in (Path(dir) / 'mmpose', Path(dir).parent):
            for model in of_package(str(ours)):
                if 'pose2d' in Path(model['Config']).parts:
                    asset = PACKAGE / 'assets' / f'{model.get("Alias")}.safetensors'
                    weights = str(asset) if asset.is_file() else model.get('Weights')
                    yield dict(model, Config=str(ours / model['Config']), Weights=weights)

    infer.BaseInferencer._get_models_from_metafile = staticmethod(models_from_metafile)
    init_model = infer.BaseInferencer._init_model

    @functools.wraps(init_model)
    def with_weights(self, cfg, weights, device='cpu'):
        path = Path(getattr(cfg, 'filename', None) or '')
        if weights is None and path.is_relative_to(ours / 'configs'):
            raise ValueError(
                f'no weights of {path.stem} are known: name some (pose2d_weights=FILE)'
            )
        return init_model(self, cfg, weights, device)

    infer.BaseInferencer._init_model = with_weights


def scope_of_our_own() -> Outcome:
    """`type='trunchier.TruncatedSwin'` fails: "Cannot auto import trunchier.registry".

    Configs of other packages that inherit from ours build in this scope. mmengine imports the
    registries of a scope by the name of its package, as `trunchier.registry`.

    Upstream: https://github.com/open-mmlab/mmengine/blob/main/mmengine/registry/registry.py
    Condition: always.
    """
    MODULE2PACKAGE.setdefault('trunchier', 'trunchier')
    sys.modules['trunchier.registry'] = importlib.import_module('.registry', __package__)
    return Outcome(True, 'mmengine knows the scopes of OpenMMLab alone')


def configs_by_package_name() -> Outcome:
    """`_base_ = 'trunchier::...'` fails: "mmengine does not support to load trunchier config".

    mmengine knows the packages of OpenMMLab alone, looks for configs in a wheel's folder `.mim`,
    which a checkout does not have, and for the modules of an editable install in site-packages.
    This serves `_base_`, `read_base`, `mmengine.hub.get_config` and `get_model`;
    `pretrained=True` means the weights that come with the package.

    Upstream: https://github.com/open-mmlab/mmengine/issues/1581
    Condition: our configs are found beside the package or in its wheel.
    """
    ours = _folder_with_configs()
    if ours is None:
        return Outcome(False, f'no configs beside {PACKAGE}, nor in its .mim')
    of_package, path_of = config_utils._get_cfg_metainfo, config.get_installed_path

    @functools.wraps(of_package)
    def metainfo(package_path, name):
        if Path(package_path).name != 'trunchier':
            return of_package(package_path, name)
        return _metainfo(ours / 'configs', name)

    @functools.wraps(path_of)
    def installed_path(package):
        return str(PACKAGE) if package == 'trunchier' else path_of(package)

    config.get_installed_path = installed_path
    for module in (config_utils, sys.modules.get('mmengine.hub.hub')):
        if module is not None:
            module._get_cfg_metainfo = metainfo
    register = ModuleType('trunchier.utils', 'Where mmengine.hub.get_model expects this function.')
    register.register_all_modules = lambda init_default_scope=True: None  # importing has done it
    sys.modules[register.__name__] = register
    return Outcome(True, f'ours are in {ours}')


def _metainfo(folder, name):
    """What mmengine reads in a metafile: the path of a config and of its weights."""
    name = name.removesuffix('.py')
    path = folder / f'{name}.py'
    if not path.is_file():
        names = [p.relative_to(folder).with_suffix('').as_posix() for p in folder.rglob('*.py')]
        similar = get_close_matches(name, names, 3, 0.4)
        raise FileNotFoundError(
            f'no config trunchier::{name} in {folder}; similar: {", ".join(similar) or "none"}'
        )
    weights = {
        model['Config']: model['Weights']
        for metafile in folder.glob('*/metafile.yml')
        for model in load(metafile)['Models']
    }.get(f'configs/{name}.py')
    info = dict(Config=str(path))  # absolute: joined to any folder it stays itself
    if not weights:
        return info
    return info | dict(Weights=weights if '://' in weights else str(PACKAGE / weights))


def drawing_with_array_radius() -> Outcome:
    """Drawing joints fails: "only 0-dimensional arrays can be converted to Python scalars".

    mmpose passes the radius of a circle as an array of one element, and int() of that is an error
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


def layer_decay_on_hierarchical_backbones() -> Outcome:
    """mmpose's layer decay, named in every ViTPose config, gives our backbones one learning rate.

    Its LayerDecayOptimWrapperConstructor knows the parameter names of mmpretrain's ViT; those of
    any other backbone count as the last layer, without a word. Where the backbone states its own
    depth (`get_layer_depth`), our DepthDecayOptimWrapperConstructor does the work.

    Upstream: https://github.com/open-mmlab/mmpose/blob/main/mmpose/engine/optim_wrappers/layer_decay_optim_wrapper.py
    Condition: mmpose is installed.
    """
    if find_spec('mmpose') is None:
        return Outcome(False, 'mmpose is not installed')
    name = 'mmpose.engine.optim_wrappers.layer_decay_optim_wrapper'
    _when_imported(name, _decay_by_depth)
    return Outcome(True, 'mmpose decays the layers of ViT alone')


def _decay_by_depth(module):
    stock = module.LayerDecayOptimWrapperConstructor
    add_vit_params = stock.add_params

    @functools.wraps(add_vit_params)
    def add_params(self, params, module, *args, **kwargs):
        backbone = getattr(module, 'backbone', None)
        if hasattr(backbone, 'layers') or not hasattr(backbone, 'get_layer_depth'):
            return add_vit_params(self, params, module, *args, **kwargs)
        cfg = dict(self.optim_wrapper_cfg, optimizer=self.optimizer_cfg)
        by_depth = OPTIM_WRAPPER_CONSTRUCTORS.get('DepthDecayOptimWrapperConstructor')
        return by_depth(cfg, self.paramwise_cfg).add_params(params, module)

    stock.add_params = add_params


def associative_embedding() -> Outcome:
    """Associative embedding does not train: "'InstanceData' object has no attribute ...".

    mmpose 1 packs of a sample's labels those that its codec lists. This codec lists none, and its
    head needs the places of the keypoints. With this patch the codec lists them. Without a flip
    test the head refuses a tuple of maps, which every backbone returns; with it, it does not.

    Upstream: https://github.com/open-mmlab/mmpose/issues/2389
    Condition: mmpose is installed.
    """
    if find_spec('mmpose') is None:
        return Outcome(False, 'mmpose is not installed')
    _when_imported('mmpose.codecs.associative_embedding', _list_labels)
    name = 'mmpose.models.heads.heatmap_heads.ae_head'
    _when_imported(name, lambda head: vars(head).update(is_list_of=is_seq_of))
    return Outcome(True, 'mmpose packs no places of keypoints')


def _list_labels(module):
    codec, names = module.AssociativeEmbedding, ('keypoint_weights', 'keypoint_indices')
    codec.label_mapping_table = codec.label_mapping_table or {name: name for name in names}


def mmpretrain_beside_new_transformers() -> Outcome:
    """Every ViT fails with "NoneType takes no arguments" as soon as transformers is installed.

    mmpretrain imports its models of text and images where transformers is installed. These use
    functions that transformers has moved in 4.56. With this patch they are left out, as they are
    without transformers.

    Upstream: https://github.com/xinyu1205/recognize-anything/issues/219, the same functions
    Condition: mmpretrain and transformers 4.56 or later are installed.
    """
    if find_spec('mmpretrain') is None or find_spec('transformers') is None:
        return Outcome(False, 'mmpretrain or transformers is not installed')
    version = importlib.metadata.version('transformers')
    if digit_version(version) < digit_version('4.56'):
        return Outcome(False, f'transformers {version} has what mmpretrain imports')
    name = 'mmpretrain.utils.dependency'
    _when_imported(name, lambda module: vars(module).update(WITH_MULTIMODAL=False))
    return Outcome(True, f'transformers {version} lacks what mmpretrain imports')


def pkg_resources_warning() -> Outcome:
    """Every run opens with "pkg_resources is deprecated as an API".

    mmengine uses pkg_resources to list installed packages; later versions use importlib. A user
    can do nothing about it, so this one warning is silenced.

    Upstream: https://github.com/open-mmlab/mmengine/pull/1676
    Condition: setuptools has pkg_resources (81 and older).
    """
    if find_spec('pkg_resources') is None:
        return Outcome(False, 'pkg_resources is not installed')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    return Outcome(True, 'mmengine imports pkg_resources')


PATCHES = (
    mmcv_without_compiled_ops,
    xtcocotools_over_pycocotools,
    bfloat16_outputs_to_numpy,
    drawing_with_array_radius,
    names_of_our_pose_models,
    scope_of_our_own,
    configs_by_package_name,
    layer_decay_on_hierarchical_backbones,
    associative_embedding,
    mmpretrain_beside_new_transformers,
    pkg_resources_warning,
)


SHARDED = {  # module: the class in it that derives from one of torch.distributed
    'mmengine.optim.optimizer.zero_optimizer': 'ZeroRedundancyOptimizer',
    'mmengine.model.wrappers.fully_sharded_distributed': 'MMFullyShardedDataParallel',
    'mmengine._strategy.fsdp': 'FSDPStrategy',
}


def without_sharding() -> None:
    """Leave sharded training out of a process that only predicts: its imports take 0.8 s.

    mmengine.model imports torch.distributed.fsdp for three classes, each in a module of its own.
    Those modules that are not imported yet are replaced by ones whose class cannot be built.
    """

    def refuse(self, *args, **kwargs):
        raise RuntimeError(f'{type(self).__name__} cannot be built by a command that only predicts')

    for name, cls in SHARDED.items():
        if name not in sys.modules and 'torch.distributed.fsdp' not in sys.modules:
            sys.modules[name] = ModuleType(name)
            setattr(sys.modules[name], cls, type(cls, (), dict(__init__=refuse)))


def _when_imported(name, patch):
    """Call patch(module) after the module `name` is imported; now, if it already is."""
    if name in sys.modules:
        patch(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Patcher(name, patch))


class _Patcher:
    """A finder that lets the others find one module, and patches it once it has run."""

    def __init__(self, name, patch):
        self.name, self.patch = name, patch

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
                self.patch(module)

            spec.loader.exec_module = exec_module
        return spec
