"""Run the test suite in each supported environment, one after the other, and print a table.

    python tests/lanes.py [newest oldest numpy2 mmcv gpu] [--checkout ../mmpose] [--pytest=-n2]

Each environment is made at its first use and updated later, from the Pythons on the PATH; with
pyenv: PYENV_VERSION=3.11.7:3.10.13:3.12.1 make test-lanes. Exit status 1: a test failed, or an
environment could not be made.

newest    what `make setup` installs
oldest    Python 3.10, torch 2.1, mmengine 0.10.4, numpy 1
numpy2    numpy 2, current OpenCV, Python 3.12 or newer, pycocotools in place of xtcocotools
mmcv      the full mmcv with compiled ops in place of mmcv-lite, built once (PyPI has no wheels);
          with --checkout also mmpose's own tests, without and with this package
gpu       the tests that need a CUDA device, in the environment `newest`
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from upstream import outcome

ROOT = Path(__file__).resolve().parents[1]
NEWEST = ROOT / '.venv'  # of `make setup`
FOLDER = ROOT / '.lanes'  # of the others


class Lane(NamedTuple):
    requirements: str = 'requirements.txt'
    pythons: tuple[str, ...] = ('python3.11', 'python3.12', 'python3.13', 'python3.10', 'python3')
    tests: tuple[str, ...] = ('tests',)
    mmcv: bool = False  # with compiled ops


LANES = {
    'newest': Lane(),
    'oldest': Lane('requirements/oldest.txt', ('python3.10',)),
    'numpy2': Lane('requirements/numpy2.txt', ('python3.13', 'python3.12')),
    'mmcv': Lane(
        tests=('tests/compat', 'tests/models', 'tests/test_openmmlab.py', 'tests/test_mmcv.py'),
        mmcv=True,
    ),
    'gpu': Lane(tests=('tests', '-m', 'gpu')),
}
PACKAGES = ('torch', 'mmengine', 'numpy', 'mmcv')
VERSIONS = """
import platform, sys
from importlib.metadata import distributions
found = {distribution.metadata['Name']: distribution.version for distribution in distributions()}
found['mmcv'] = found.get('mmcv') or f"{found['mmcv-lite']} (lite)"
print(platform.python_version(), *map(found.get, sys.argv[1:]), sep=' | ')
"""
HAS_GPU = 'import sys, torch; sys.exit(not torch.cuda.is_available())'
HEADER = '| lane | Python | torch | mmengine | numpy | mmcv | passed | failed | skipped | minutes |'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('lanes', nargs='*', metavar='LANE', help=' '.join(LANES))
    parser.add_argument('--checkout', type=Path, help='of mmpose, for the lane mmcv')
    parser.add_argument('--pytest', default='', metavar='OPTIONS', help='further options')
    args = parser.parse_args(arguments)
    unknown = set(args.lanes) - set(LANES)
    if unknown:
        parser.error(f'unknown lanes {sorted(unknown)}; there are {", ".join(LANES)}')
    rows, failed = [HEADER, '|---' * (HEADER.count('|') - 1) + '|'], False
    for name in args.lanes or LANES:
        lane = LANES[name]
        try:
            python = environment(name, lane)
        except subprocess.CalledProcessError as error:
            rows.append(f'| {name} | cannot be made: {shlex.join(map(str, error.cmd))} |')
            failed = True
            continue
        if name == 'gpu' and subprocess.run([python, '-c', HAS_GPU]).returncode:
            rows.append(f'| gpu | {versions(python)} | no CUDA device | | | |')
            continue
        started = time.monotonic()
        counts, reasons = run(python, [*lane.tests, *shlex.split(args.pytest)])
        minutes = (time.monotonic() - started) / 60
        bad = counts['failed'] + counts['error']
        numbers = f'{counts["passed"]} | {bad} | {counts["skipped"]} | {minutes:.0f}'
        rows.append(f'| {name} | {versions(python)} | {numbers} |')
        failed |= bad > 0 or not counts['passed']
        for why, number in reasons.most_common():
            print(f'{number:5d} skipped in {name}: {why}')
        if lane.mmcv and args.checkout:
            upstream = [python, ROOT / 'tests' / 'upstream.py', args.checkout]
            failed |= subprocess.run(upstream).returncode != 0
    print('\n'.join(rows))
    return int(failed)


def environment(name: str, lane: Lane) -> Path:
    """Make or update the environment of a lane; its Python.

    Raises:
        subprocess.CalledProcessError: it cannot be made; the reason has been printed.
    """
    folder = NEWEST if name in ('newest', 'gpu') else FOLDER / name
    make = [ROOT / 'tools' / 'make_venv.sh', folder, lane.requirements, *lane.pythons]
    subprocess.run(make, check=True)
    python = folder / 'bin' / 'python'
    if lane.mmcv:
        install_mmcv(python)
    return python


def install_mmcv(python: Path) -> None:
    """Replace mmcv-lite by the full mmcv, built for this torch at the first use.

    Raises:
        subprocess.CalledProcessError: it cannot be built; the reason has been printed.
    """
    pip = [python, '-m', 'pip']
    wheels = FOLDER / 'wheels' / versions(python, 'torch').replace(' | ', '_')
    if not any(wheels.glob('mmcv-*.whl')):
        print(f'building mmcv in {wheels}: ten minutes or more', flush=True)
        isolated = ['--quiet', '--no-deps', '--no-build-isolation']
        download = ['download', *isolated, '--no-binary=mmcv', f'--dest={wheels}', 'mmcv==2.1.0']
        subprocess.run([*pip, *download], check=True)
        shutil.unpack_archive(wheels / 'mmcv-2.1.0.tar.gz', wheels)
        script = wheels / 'mmcv-2.1.0' / 'setup.py'
        # The headers of current torch require C++20.
        script.write_text(script.read_text().replace('-std=c++17', '-std=c++20'))
        build = ['wheel', *isolated, f'--wheel-dir={wheels}', script.parent]
        subprocess.run([*pip, *build], env=dict(os.environ, MMCV_WITH_OPS='1'), check=True)
    subprocess.run([*pip, 'uninstall', '--quiet', '--yes', 'mmcv-lite'], check=True)
    install = ['install', '--quiet', '--no-deps', '--no-index', f'--find-links={wheels}']
    subprocess.run([*pip, *install, 'mmcv==2.1.0'], check=True)


def versions(python: Path, *names: str) -> str:
    """Versions of Python and of packages as cells of the table."""
    command = [python, '-c', VERSIONS, *(names or PACKAGES)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run(python: Path, options: list[str]) -> tuple[Counter, Counter]:
    """Numbers of tests by outcome, and of skipped tests by reason; empty if no test ran."""
    counts, reasons = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
        command = [python, '-m', 'pytest', '-p', 'no:cacheprovider', f'--junitxml={report}']
        subprocess.run([*command, *options], cwd=ROOT, env=environment)
        if report.is_file():
            for case in ElementTree.parse(report).iter('testcase'):
                counts[outcome(case)] += 1
                reasons.update(skip.get('message') for skip in case.iter('skipped'))
    return counts, reasons


if __name__ == '__main__':
    sys.exit(main())
