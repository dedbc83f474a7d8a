"""Official files by name: announced, checked, from a mirror, or by hand; the table is sound."""

import hashlib
import re

import pytest

from trunchier import zoo
from trunchier.files import DownloadError
from trunchier.weights import official
from trunchier.zoo import releases

CONTENT = b'weights' * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def offered(monkeypatch, tmp_path, web):
    """Function that changes facts of ViTPose-B, whose file a local server has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    web.files['/net.pth'] = CONTENT

    def offer(**facts):
        facts = dict(urls=(f'{web.url}/net.pth',), sha256=SHA256[:8]) | facts
        row = releases.RELEASES['ViTPose-B']._replace(**facts)
        monkeypatch.setitem(releases.RELEASES, 'ViTPose-B', row)

    return offer


def test_a_file_is_fetched_by_its_name_with_its_license_said(offered, tmp_path, capsys):
    offered()
    assert official.installed('vitpose-b') is None
    path = official.fetch('vitpose-b')
    assert path == tmp_path / 'home' / 'net.pth' and path.read_bytes() == CONTENT
    assert 'Apache-2.0' in capsys.readouterr().err
    assert official.installed('ViTPose-B') == official.fetch('ViTPose_B') == path
    assert capsys.readouterr().err == ''


def test_mirrors_are_tried_in_turn(offered, web):
    offered(urls=(f'{web.url}/absent.pth', f'{web.url}/net.pth'), file='net.pth')
    assert official.fetch('ViTPose-B').read_bytes() == CONTENT


def test_a_file_with_another_hash_is_refused_and_removed(offered, tmp_path):
    offered(sha256='0123abcd')
    with pytest.raises(DownloadError, match='SHA-256'):
        official.fetch('ViTPose-B')
    assert list((tmp_path / 'home').iterdir()) == []


def test_a_file_without_an_address_says_where_to_get_it_and_where_to_put_it(offered, tmp_path):
    offered(urls=(), file='net.pth', by_hand='https://example.org/page')
    with pytest.raises(FileNotFoundError, match=r'example.org/page.*data/checkpoints/net.pth'):
        official.fetch('ViTPose-B')
    folder = tmp_path / 'data' / 'checkpoints'
    folder.mkdir(parents=True)
    (folder / 'net.pth').write_bytes(b'mine')
    assert official.fetch('ViTPose-B').read_bytes() == b'mine'


def test_offline_a_missing_file_is_an_error_and_a_present_one_is_taken(offered, monkeypatch):
    offered()
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '1')
    with pytest.raises(DownloadError, match='TRUNCHIER_OFFLINE'):
        official.fetch('ViTPose-B')
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '')
    path = official.fetch('ViTPose-B')
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '1')
    assert official.fetch('ViTPose-B') == path


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match='did you mean .*yolox-nano'):
        official.fetch('yolox-nan')


# --- the table ------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', releases.RELEASES)
def test_a_row_can_be_had_and_says_its_license(name):
    row = releases.RELEASES[name]
    assert row.what and row.license and row.layout
    assert row.urls or row.by_hand.startswith('https://')
    assert all(url.startswith('https://') for url in row.urls)
    assert re.fullmatch(r'([0-9a-f]{8}|[0-9a-f]{64})?', row.sha256)
    assert re.fullmatch(r'[\w.+-]+\.(pth|ckpt|onnx|safetensors)', row.filename)
    assert row.model in ('', *zoo.models())
    in_name = re.search(r'-([0-9a-f]{8})_\d{8}\.pth', row.filename)
    assert not in_name or in_name[1] == row.sha256


def test_no_two_rows_share_a_file():
    names = [row.filename for row in releases.RELEASES.values()]
    assert len(set(names)) == len(names)


def test_every_backbone_names_its_initial_weights():
    assert releases.WEIGHTS.keys() == zoo.BACKBONES.keys()
