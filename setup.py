"""Package metadata; a wheel also carries configs, tools and model index, as mmpose's does."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
README = ROOT / 'README.md'

# What mmdet, mmpose and mmpretrain, installed without their dependencies, import.
OPENMMLAB_NEEDS = [
    *('mmcv-lite==2.1.0', 'torchvision', 'einops', 'importlib-metadata', 'json-tricks', 'mat4py'),
    *('modelindex', 'munkres', 'pycocotools', 'scipy', 'shapely', 'six', 'terminaltables', 'tqdm'),
]

# Copied into trunchier/.mim of a wheel, where OpenMMLab's tools look for the configs of a package.
CARRIED = ('configs', 'results', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds the folder `.mim` to the wheel, not to a checkout."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for name in CARRIED:
            source, target = ROOT / name, Path(self.build_lib, 'trunchier', '.mim', name)
            if source.is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)
            elif source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)


def version():
    text = (ROOT / 'trunchier' / 'files' / 'version.py').read_text()
    return re.search(r"^__version__ = '(.+)'$", text, re.M).group(1)


setup(
    name='trunchier',
    version=version(),
    description='Truncated hierarchical backbones for pose and human mesh models, for mmpose',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=('LICENSE*', 'NOTICE*'),
    python_requires='>=3.10',
    packages=find_packages(include=['trunchier', 'trunchier.*']),
    package_data={'trunchier': ['py.typed', 'assets/*']},
    entry_points={'console_scripts': ['trunchier = trunchier.__main__:main']},
    # What `trunchier predict` needs. mmpose is for training and other heads, and its own metadata
    # requires chumpy, which no longer builds: `files.optional.OPENMMLAB` says how to install it.
    install_requires=[
        'torch>=2.1',
        'mmengine>=0.10.4',
        'setuptools<81',  # mmengine imports its pkg_resources
        'numba',  # kernels of the models on CPU, renderer, synthetic people
        'numpy',
        'onnxruntime',  # detectors
        'opencv-python',
        'safetensors',
    ],
    extras_require={
        'data': ['pycocotools', 'scipy'],
        'export': ['onnx', 'onnxscript'],
        'mesh': ['smplx', 'trimesh'],
        'openvino': ['openvino'],
        'ray': ['ray[data,train]>=2.51', 'pyarrow<23'],  # later ones require numpy 2
        'remote': ['fsspec', 'aiohttp', 's3fs', 'gcsfs'],  # shards on servers
        'tables': ['pandas'],
        'timm': ['timm'],
        'train': OPENMMLAB_NEEDS,
        'video': ['av', 'trackers'],
        'viewer': ['viser', 'websockets'],
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
