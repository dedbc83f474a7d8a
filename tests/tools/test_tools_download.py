"""`trunchier models` and `trunchier download`: what is listed, and what is fetched."""

import download
import models
import pytest

from trunchier import zoo
from trunchier.zoo import releases


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'home'


def table(capsys, *arguments):
    assert models.main([*arguments]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_all_models_are_listed_with_the_state_of_their_weights(cache, capsys):
    rows = {row[0]: row[1:] for row in table(capsys)[1:]}
    assert list(rows) == zoo.list_models()
    assert rows['ViTPose-B'] == ['pose', '89.99', '18.5', 'download', 'Apache-2.0']
    assert rows['VMPose-T-S2'][3] == 'here'
    assert rows['HMR2.0-S'][3:5] == ['by', 'hand']
    assert rows['SwinPose-T-S3'][3:] == ['none']
    cache.mkdir()
    (cache / releases.RELEASES['ViTPose-B'].filename).touch()
    assert table(capsys, 'vitpose-b')[1][4] == 'here'


def test_files_are_listed_with_their_place(cache, capsys):
    rows = table(capsys, '--files', 'yolox*')
    assert [row[0] for row in rows[1:]] == ['yolox-nano', 'yolox-tiny', 'yolox-s']
    assert rows[1][-2:] == [releases.RELEASES['yolox-nano'].urls[0], 'Apache-2.0']


@pytest.mark.parametrize('arguments', [['Foo*'], ['--files', 'Foo*']])
def test_a_pattern_that_matches_nothing_is_an_error(capsys, arguments):
    assert models.main(arguments) == 1
    assert 'ViTPose-B' in capsys.readouterr().err


def test_files_are_downloaded_and_named_with_their_license(cache, capsys, web, monkeypatch):
    web.files['/a.onnx'] = b'a'
    row = releases.RELEASES['yolox-s']._replace(urls=(f'{web.url}/a.onnx',), sha256='', size=0)
    monkeypatch.setitem(releases.RELEASES, 'yolox-s', row)
    assert download.main(['YOLOX-S']) == 0
    assert capsys.readouterr().out == f'yolox-s: {cache / "a.onnx"} (license: Apache-2.0)\n'
    web.files.clear()
    assert download.main(['gmf-t', 'yolox-s']) == 1  # one by hand, the other is here
    captured = capsys.readouterr()
    assert 'sharepoint' in captured.err and 'yolox-s' in captured.out


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('vm-t-s2', 'name one: VMPose-T-S2 or VMHMR2.0-T-S2'),
        ('VMPose-T-S2', 'no official weights of VMPose-T-S2 are known'),
        ('vitpos-b', 'did you mean ViTPose-B'),
    ],
)
def test_a_name_without_a_file_is_answered_before_any_download(cache, capsys, web, name, text):
    assert download.main(['yolox-s', name]) == 1
    assert text in capsys.readouterr().err and not cache.exists()
