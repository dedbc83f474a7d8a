"""tools/doctor.py reports what is present and what is missing, with a remedy."""

import importlib

import doctor
import pytest

from trunchier.compat import patches
from trunchier.ops import available_backends, linear, thread_choice


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_a_working_installation_is_reported_and_exits_with_zero(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in ('python', 'torch', 'numpy', 'mmpose', 'CPU'):
        assert f'\n  {name} ' in out
    for operation, backends in available_backends().items():
        for name, state in backends.items():
            assert f'\n  {operation:<18}{name:<10}{state}\n' in out
    for patch in patches.PATCHES:
        state = 'applied' if patches.OUTCOMES[patch.__name__].applied else 'not needed'
        assert f'\n  {patch.__name__}: {state}, {patches.OUTCOMES[patch.__name__].reason}\n' in out
        assert patch.__doc__.splitlines()[0] in out
    assert out.count('https://github.com/') >= len(patches.PATCHES)


def test_backends_of_linear_layers_are_reported(capsys, monkeypatch):
    chosen = dict(zip(linear.KINDS, ('mkl', 'onednn'), strict=True))
    monkeypatch.setattr(linear, 'cpu_linear', lambda: chosen)
    doctor.main([])
    out = capsys.readouterr().out
    for kind, name in chosen.items():
        assert f'\n  linear, {kind:<10}{name:<10}' in out
    assert linear.VARIABLE in out


@pytest.mark.parametrize(
    'share, told',
    [
        (0.02, 'a thread waits for a core 2% of the time\n'),
        (0.45, 'a thread waits for a core 45% of the time: other processes use the cores; '),
        (None, 'not known how long threads wait for a core\n'),
    ],
)
def test_busy_machines_are_reported(share, told, capsys, monkeypatch):
    monkeypatch.setattr(thread_choice, 'share_of_waiting', lambda: share)
    doctor.report_load()
    out = capsys.readouterr().out
    assert '\n  load            average ' in out and told in out
    assert out.startswith('  idle threads    ')


def test_every_missing_file_comes_with_a_remedy(capsys, tmp_path):
    body = tmp_path / 'data/smpl/SMPL_NEUTRAL.npz'
    body.parent.mkdir(parents=True)
    body.touch()
    places = list(doctor.places())
    doctor.main([])
    report, remedies = capsys.readouterr().out.split('What to do')
    assert '  found   data/smpl/SMPL_NEUTRAL.npz' in report
    assert 'convert-smpl' not in remedies
    absent = [place for place in places if not place.path.exists()]
    assert len(absent) == len(places) - 2  # the embedded body and SMPL are there
    for place in absent:
        assert f'  missing {place.path}  ({place.purpose})' in report
        assert f'\n      {place.remedy}\n' in remedies
        assert place.purpose in remedies


@pytest.mark.parametrize(
    ('package', 'purpose', 'remedy'),
    [
        ('numba', 'fast kernels on CPU, synthetic people', 'pip install numba'),
        ('smplx', 'bodies: mesh models and lifting', 'pip install smplx==0.1.28'),
    ],
)
def test_a_missing_package_is_named_with_its_purpose_and_command(
    capsys, monkeypatch, package, purpose, remedy
):
    installed = doctor.installed
    monkeypatch.setattr(doctor, 'installed', lambda name: name != package and installed(name))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert f'  {package:<16}missing: {purpose}' in out
    assert f'\n      {remedy}\n' in out.split('What to do')[1]


@pytest.mark.parametrize('broken', ['trunchier', 'mmpose.models'])
def test_a_failing_import_is_an_error(capsys, monkeypatch, broken):
    import_module = importlib.import_module

    def failing(name, package=None):
        if name == broken:
            raise ImportError('libtorch is damaged')
        return import_module(name, package)

    monkeypatch.setattr(importlib, 'import_module', failing)
    assert doctor.main([]) == 1
    assert (
        f'{broken} cannot be imported: ImportError: libtorch is damaged' in capsys.readouterr().out
    )
