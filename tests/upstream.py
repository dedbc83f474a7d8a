"""Run the tests of mmpose, mmengine or mmpretrain without and with this package, and compare.

    python tests/upstream.py ../mmpose ../mmengine [--select tests/test_models] [--pytest=-n2]

Each argument is a checkout, named as the package, of the version that is installed; its `tests/`
are run from a copy. What they import beyond the package, such as parameterized, must be installed.
The first run does not import this package, the second imports it before everything else. Exit
status 1: a test passes without and does not pass with it.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkouts', nargs='+', type=Path, metavar='CHECKOUT')
    parser.add_argument('--select', nargs='+', default=['tests'], help='folders or files of tests')
    parser.add_argument('--pytest', default='', metavar='OPTIONS', help='further options')
    parser.add_argument('--reports', type=Path, metavar='FOLDER', help='keep the JUnit files here')
    args = parser.parse_args(arguments)
    worse = {}
    for checkout in args.checkouts:
        if not (checkout / 'tests').is_dir():
            parser.error(f'no folder tests in {checkout}; name a checkout, sdists have no tests')
        runs = []
        for words in ('without', 'with'):
            report = args.reports and args.reports.resolve() / f'{checkout.name}_{words}.xml'
            options = shlex.split(args.pytest)
            run = outcomes(checkout, args.select, options, words == 'with', report)
            counts = ', '.join(f'{n} {kind}' for kind, n in sorted(Counter(run.values()).items()))
            print(f'{checkout.name} {words} trunchier: {counts}', flush=True)
            runs.append(run)
        worse |= {name: runs[1].get(name, 'absent') for name in worsened(*runs)}
    for name, outcome in worse.items():
        print(f'passes without, {outcome} with trunchier: {name}')
    return 1 if worse else 0


def worsened(without: dict[str, str], with_us: dict[str, str]) -> list[str]:
    """Tests that pass in the first run and not in the second."""
    return [
        name
        for name, outcome in without.items()
        if outcome == 'passed' and with_us.get(name) != 'passed'
    ]


def outcomes(
    checkout: Path,
    selected: list[str],
    options: list[str],
    with_us: bool,
    report: Path | None = None,
) -> dict[str, str]:
    """{test: passed, failed, error or skipped} of one run; `report` keeps its JUnit file.

    Raises:
        RuntimeError: pytest wrote no report.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(checkout / 'tests', Path(folder, 'tests'))
        installed = find_spec(checkout.name)
        if installed:  # is what is tested; some tests look for `configs` beside it
            os.symlink(Path(installed.origin).parent, Path(folder, checkout.name))
        if (checkout / 'configs').is_dir():
            os.symlink((checkout / 'configs').resolve(), Path(folder, 'configs'))
        report = report or Path(folder, 'report.xml')
        plugin = ['-p', 'trunchier'] if with_us else []
        command = [sys.executable, '-m', 'pytest', '-q', *plugin, '-p', 'no:cacheprovider']
        command += ['--continue-on-collection-errors', f'--junitxml={report}', *options, *selected]
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        environment = dict(os.environ, PYTHONPATH=path)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(
                f'pytest wrote no report:\n{done.stdout[-2000:]}{done.stderr[-2000:]}'
            )
        return read_report(report)


def read_report(path: Path) -> dict[str, str]:
    """{test: outcome} of a JUnit file."""
    return {
        f'{case.get("classname")}::{case.get("name")}': outcome(case)
        for case in ElementTree.parse(path).iter('testcase')
    }


def outcome(case: ElementTree.Element) -> str:
    """passed, failed, error or skipped."""
    kinds = [child.tag for child in case if child.tag in ('failure', 'error', 'skipped')]
    return dict(failure='failed').get(kinds[0], kinds[0]) if kinds else 'passed'


if __name__ == '__main__':
    sys.exit(main())
