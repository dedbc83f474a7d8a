"""The first answer on a machine is everybody's."""

import pytest

from trunchier.files.decided import decided, decisions


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


def asked(answer, question='which?'):
    return decided(question, ('a', 'b'), lambda: answer)


def test_the_first_answer_stays_and_other_questions_have_their_own():
    assert [asked('a'), asked('b'), asked('b', 'and here?')] == ['a', 'a', 'b']


def test_what_is_kept_can_be_listed(home):
    asked('a'), asked('b', 'and here?')
    (home / 'decisions' / 'of-older-versions').write_text('a')
    assert decisions() == {'which?': 'a', 'and here?': 'b'}


def test_of_two_at_the_same_time_one_answer_counts():
    assert decided('which?', ('a', 'b'), lambda: {'a': 'b'}[asked('a')]) == 'a'


@pytest.mark.parametrize('content', [b'', b'c', b'\xff'])
def test_a_damaged_answer_is_replaced(home, content):
    asked('a')
    (kept,) = (home / 'decisions').iterdir()
    kept.write_bytes(content)
    assert [asked('b'), asked('a')] == ['b', 'b']
    assert [path.name for path in (home / 'decisions').iterdir()] == [kept.name]


def test_where_nothing_can_be_kept_each_decides(home):
    home.write_text('a file, not a folder')
    assert [asked('a'), asked('b')] == ['a', 'b']
