"""Installs the package; a wheel also carries configs, tools and model index, as mmpose's does."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
README = ROOT / 'README.md'

# A checkout is complete without these copies; an installed wheel finds them in trunchier/.mim,
# where OpenMMLab's tools look for the configs of a package.
CARRIED = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Copies what stands beside the package into the `.mim` folder of the wheel."""

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
    text = (ROOT / 'trunchier' / '__init__.py').read_text()
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
    package_data={
        'trunchier': [
            *('**/*.npz', '**/*.json', '**/*.md', '**/LICENSE*', '**/NOTICE*'),
            'assets/*.safetensors',
        ]
    },
    # mmpose is no dependency in the metadata's sense: its own metadata asks for chumpy, which no
    # longer builds. requirements.txt says how it is installed without.
    install_requires=['torch>=2.1', 'mmengine>=0.10.4', 'numpy', 'opencv-python'],
    extras_require={
        'data': ['webdataset', 'scipy'],
        'detection': ['onnxruntime'],
        'export': ['onnx', 'onnxscript', 'onnxruntime'],
        'mesh': ['smplx', 'trimesh'],
        'synthetic': ['numba', 'scipy'],
        'video': ['av', 'trackers'],
        'viewer': ['viser'],
        'weights': ['safetensors'],
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
