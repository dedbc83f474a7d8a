"""Report versions, devices, patches and missing files, with remedies.

    trunchier doctor

Exits with 1 if the package, or an installed mmpose, cannot be imported.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from idle_threads import CHOSEN_BY  # before torch


class Package(NamedTuple):
    names: tuple[str, ...]  # of distributions; any of them suffices
    purpose: str
    remedy: str = '`make setup`, or by hand: see requirements.txt'


# fmt: off
PACKAGES = (
    Package(('torch',), 'everything'),
    Package(('mmengine',), 'everything'),
    Package(('numpy',), 'everything'),
    Package(('opencv-python', 'opencv-python-headless', 'opencv-contrib-python'), 'images'),
    Package(('torchvision',), 'mmpose'),
    Package(('mmcv', 'mmcv-lite'), 'mmpose'),
    Package(('mmdet',), 'mmpose'),
    Package(('mmpose',), 'pose models, training and testing'),
    Package(('mmpretrain',), 'ViTPose and HMR2.0'),
    Package(('xtcocotools', 'pycocotools'), 'COCO annotations and AP', 'pip install pycocotools'),
    Package(('setuptools',), "mmengine's pkg_resources", "pip install 'setuptools<81'"),
    Package(('numba',), 'fast kernels on CPU, synthetic people, meshes', 'pip install numba'),
    Package(('safetensors',), 'weights that ship with this package', 'pip install safetensors'),
    Package(('smplx',), 'bodies: mesh models and lifting', 'pip install smplx==0.1.28'),
    Package(('scipy',), 'annotations of the mesh data sets', 'pip install scipy'),
    Package(('trimesh',), 'writing meshes', 'pip install trimesh'),
    Package(('av',), 'reading and writing videos', 'pip install av'),
    Package(('onnxruntime',), 'detection by YOLOX, ONNX files', 'pip install onnxruntime'),
    Package(('openvino',), 'predict --runtime auto, openvino', "pip install 'trunchier[openvino]'"),
    Package(('onnxscript',), 'export to ONNX', 'pip install onnxscript'),
    Package(('trackers',), 'track ids in videos', 'pip install --no-deps trackers supervision'),
    Package(('viser',), 'predict --viewer', 'pip install viser'),
)
# fmt: on


class Place(NamedTuple):
    path: Path
    purpose: str
    remedy: str


def places() -> Iterator[Place]:
    """Files and folders that configs and models look for in the current folder."""
    from trunchier.models.mesh.body import EMBEDDED_BODY, FILE_NAME
    from trunchier.zoo.datasets import EVALUATION, MOCAP, POSE_HISTOGRAM, TRAINING

    data = Path('data')
    coco = 'unpack it from https://cocodataset.org/#download'
    images = 'unpack the files that the authors of the data set publish'
    four_d = 'see https://github.com/shubham-goel/4D-Humans, "Training" and "Evaluation"'
    training, evaluation = data / 'hmr2_training_data', data / 'hmr2_evaluation_data'
    yield Place(EMBEDDED_BODY, 'the embedded body', 'reinstall trunchier')
    yield Place(
        data / 'smpl' / FILE_NAME,
        "SMPL, for the paper's mesh numbers",
        'register at https://smpl.is.tue.mpg.de, put SMPL_NEUTRAL.pkl (or the v1.1.0 '
        'basicmodel_neutral) into data/smpl, then trunchier convert-smpl',
    )
    for name in ('train2017', 'val2017'):
        yield Place(data / 'coco' / name, 'COCO images', coco)
        file = f'annotations/person_keypoints_{name}.json'
        yield Place(data / 'coco' / file, 'COCO annotations', coco)
    yield Place(
        data / 'coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json',
        'person boxes for testing pose models',
        'linked from https://mmpose.readthedocs.io (2D body keypoint datasets, COCO)',
    )
    for part in TRAINING.values():
        yield Place(training / 'dataset_tars' / part.folder, 'mesh training', four_d)
    yield Place(training / MOCAP, 'real poses for the discriminator', four_d)
    yield Place(training / POSE_HISTOGRAM, 'filter of improbable training poses', four_d)
    for name, row in EVALUATION.items():
        yield Place(evaluation / row.file, f'mesh evaluation, {name}', four_d)
        yield Place(data / row.images, f'images of {name}', images)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog='trunchier doctor',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    problems = report_packages()
    try:
        trunchier = importlib.import_module('trunchier')
    except Exception as error:
        print(f'\ntrunchier cannot be imported: {type(error).__name__}: {error}')
        return 1
    print(f'\ntrunchier {trunchier.__version__} in {Path(trunchier.__file__).parent}')
    report_devices()
    report_patches(trunchier.compat.patches)
    broken = report_imports()
    report_backends()
    report_places(problems)
    report_weights()
    if problems:
        print('\nWhat to do')
        for remedy, purposes in problems.items():
            print(f'  for {"; ".join(dict.fromkeys(purposes))}:\n      {remedy}')
    return 1 if broken else 0


def report_packages() -> dict[str, list[str]]:
    """Print versions; returns {remedy: purposes} of missing packages."""
    problems = {}
    print(f'Versions\n  {"python":<16}{platform.python_version()} ({sys.executable})')
    for package in PACKAGES:
        present = [name for name in package.names if installed(name)]
        for name in present:
            print(f'  {name:<16}{installed(name)}')
        if not present:
            print(f'  {package.names[0]:<16}missing: {package.purpose}')
            problems.setdefault(package.remedy, []).append(package.purpose)
    if installed('setuptools') and find_spec('pkg_resources') is None:
        problems.setdefault("pip install 'setuptools<81'", []).append("mmengine's pkg_resources")
    return problems


def installed(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)


def report_devices() -> None:
    import torch

    print(f'\nDevices\n  CPU             {os.cpu_count()} cores, {torch.get_num_threads()} threads')
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        print(f'  cuda:{index:<10} {device.name}, {device.total_memory / 2**30:.0f} GiB')
    if not torch.cuda.is_available():
        print('  CUDA            none visible: training and inference run on the CPU')
    report_load()


def report_load() -> None:
    """Print how threads wait, and whether other processes use the cores."""
    from trunchier.ops.thread_choice import STARVED, share_of_waiting

    chosen = [f'{name}={os.environ[name]}' for name in CHOSEN_BY if name in os.environ]
    print(f'  idle threads    {", ".join(chosen)}')
    average = f'average {os.getloadavg()[0]:.1f}, ' if hasattr(os, 'getloadavg') else ''
    share = share_of_waiting()
    if share is None:
        state = 'not known how long threads wait for a core'
    else:
        state = f'a thread waits for a core {share:.0%} of the time'
        if share > STARVED:
            state += (
                ': other processes use the cores; training and prediction then take all threads '
                'or one, whichever is faster, unless OMP_NUM_THREADS is set'
            )
    print(f'  load            {average}{state}')


def report_patches(compat: ModuleType) -> None:
    print('\nPatches (trunchier/compat/patches.py)')
    for patch in compat.PATCHES:
        outcome = compat.OUTCOMES[patch.__name__]
        state = 'applied' if outcome.applied else 'not needed'
        description = inspect.getdoc(patch)
        upstream = re.search(r'Upstream: (\S+)', description)[1]
        print(f'  {patch.__name__}: {state}, {outcome.reason}')
        print(f'      {description.splitlines()[0]}\n      {upstream}')


def report_imports() -> list[str]:
    """Print and return the parts of mmpose that cannot be imported."""
    if find_spec('mmpose') is None:
        return []
    broken = []
    for name in ('mmpose.models', 'mmpose.datasets', 'mmpose.evaluation'):
        try:
            importlib.import_module(name)
        except Exception as error:
            broken.append(name)
            print(f'\n{name} cannot be imported: {type(error).__name__}: {error}')
    return broken


def report_backends() -> None:
    from trunchier.files.decided import decisions
    from trunchier.ops import available_backends
    from trunchier.ops.linear import VARIABLE, cpu_linear

    print('\nBackends')
    for operation, backends in available_backends().items():
        for name, state in backends.items():
            print(f'  {operation:<18}{name:<10}{state}')
    for kind, name in cpu_linear().items():
        print(f'  linear, {kind:<10}{name:<10}chosen on this CPU, set it by {VARIABLE}')
    for question, answer in decisions().items():
        print(f'  measured here: {answer}  ({question})')


def report_places(problems: dict[str, list[str]]) -> None:
    print(f'\nFiles, relative to {Path.cwd()}')
    for place in places():
        found = place.path.exists()
        print(f'  {"found" if found else "missing":<8}{place.path}  ({place.purpose})')
        if not found:
            problems.setdefault(place.remedy, []).append(place.purpose)


def report_weights() -> None:
    from trunchier.files.download import cache_folder, find_file
    from trunchier.zoo.releases import BY_HAND, RELEASES

    found = [name for name, row in RELEASES.items() if find_file(row.filename)]
    print(f'\nOfficial files in {BY_HAND} or {cache_folder()}: {len(found)} of {len(RELEASES)}')
    for name in found:
        print(f'  {name}')
    absent = [name for name, row in RELEASES.items() if not row.urls and name not in found]
    exception = f',\n  except {", ".join(absent)}: put these into {BY_HAND}' if absent else ''
    print(f'  The others are downloaded when they are first named{exception}')


if __name__ == '__main__':
    sys.exit(main())
