"""tools/doctor.py tells what is there and what is not, and what to do about that."""

import importlib.util
from pathlib import Path

import pytest

from trunchier.compat import patches
from trunchier.ops import BACKENDS, linear

TOOL = Path(__file__).resolve().parents[2] / 'tools/doctor.py'


@pytest.fixture
def doctor(monkeypatch, tmp_path):
    """The tool, in an empty folder."""
    spec = importlib.util.spec_from_file_location('doctor', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module


def test_a_working_installation_is_reported_and_exits_with_zero(doctor, capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for name in ('python', 'torch', 'numpy', 'mmpose', 'CPU', *BACKENDS):
        assert f'\n  {name} ' in out
    for patch in patches.PATCHES:
        state = 'applied' if patches.OUTCOMES[patch.__name__].applied else 'not needed'
        assert f'\n  {patch.__name__}: {state}, {patches.OUTCOMES[patch.__name__].reason}\n' in out
        assert patch.__doc__.splitlines()[0] in out
    assert out.count('https://github.com/') >= len(patches.PATCHES)


def test_who_multiplies_is_reported(doctor, capsys, monkeypatch):
    chosen = dict(zip(linear.KINDS, ('mkl', 'onednn'), strict=True))
    monkeypatch.setattr(linear, 'cpu_linear', lambda: chosen)
    doctor.main()
    out = capsys.readouterr().out
    assert '\n  few rows        mkl\n  many rows       onednn\n' in out
    assert linear.VARIABLE in out


def test_every_place_is_found_or_comes_with_a_remedy(doctor, capsys, tmp_path):
    body = tmp_path / 'data/smpl/SMPL_NEUTRAL.npz'
    body.parent.mkdir(parents=True)
    body.touch()
    places = list(doctor.places())
    doctor.main()
    report, remedies = capsys.readouterr().out.split('What to do')
    assert '  found   data/smpl/SMPL_NEUTRAL.npz' in report
    assert 'convert_smpl.py' not in remedies
    absent = [place for place in places if not place.path.exists()]
    assert len(absent) == len(places) - 2  # the embedded body and SMPL are there
    for place in absent:
        assert f'  missing {place.path}  ({place.purpose})' in report
        assert f'\n      {place.remedy}\n' in remedies
        assert place.purpose in remedies


def test_a_missing_package_is_named_with_its_purpose_and_command(doctor, capsys, monkeypatch):
    installed = doctor.installed
    monkeypatch.setattr(doctor, 'installed', lambda name: name != 'numba' and installed(name))
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert '  numba           missing: synthetic people' in out
    assert 'pip install numba' in out.split('What to do')[1]


@pytest.mark.parametrize('broken', ['trunchier', 'mmpose.models'])
def test_what_cannot_be_imported_is_an_error(doctor, capsys, monkeypatch, broken):
    import_module = importlib.import_module

    def failing(name):
        if name == broken:
            raise ImportError('libtorch is torn')
        return import_module(name)

    monkeypatch.setattr(importlib, 'import_module', failing)
    assert doctor.main() == 1
    assert f'{broken} cannot be imported: ImportError: libtorch is torn' in capsys.readouterr().out
