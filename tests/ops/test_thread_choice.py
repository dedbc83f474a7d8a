"""The number of threads follows the speed where other processes use the cores, too; no clock."""

import pytest
import torch

from trunchier.ops import thread_choice
from trunchier.ops.thread_choice import TRIAL, WINDOW, ThreadChoice


def run(choice, steps, together, alone, share=0.0, share_alone=None):
    """Steps with one thread; seconds of a step with all threads, and with one."""
    count = 0
    for _ in range(steps):
        count += choice.alone
        waits = share if not choice.alone or share_alone is None else share_alone
        choice.observe(alone if choice.alone else together, waits)
    return count


def test_on_an_idle_machine_all_threads_are_used():
    choice = ThreadChoice()
    assert run(choice, 1000, together=1, alone=1.6) == 0


def test_a_task_that_becomes_longer_is_no_reason_to_change():
    choice = ThreadChoice()
    assert run(choice, 50, together=1, alone=1.6) == run(choice, 50, together=9, alone=1.6) == 0


def test_outliers_change_nothing():
    choice = ThreadChoice()
    for step in range(400):
        choice.observe(50.0 if step % 5 == 0 else 1.0, 0.05)
        assert not choice.alone


@pytest.mark.parametrize('alone, wins', [(2.0, True), (9.0, False)])
def test_a_machine_that_is_busy_from_the_start_is_measured_once(alone, wins):
    choice = ThreadChoice()
    steps = run(choice, WINDOW + 2 * TRIAL, together=4.4, alone=alone, share=0.5)
    assert steps == TRIAL
    assert run(choice, 100, together=4.4, alone=alone, share=0.5) == 100 * wins


def test_when_the_speed_falls_one_thread_takes_over_until_the_cores_are_free_again():
    choice = ThreadChoice()
    assert run(choice, 50, together=1, alone=1.6) == 0
    run(choice, 2 * WINDOW + 2 * TRIAL, together=16, alone=2.4, share=0.5)
    assert choice.alone
    run(choice, 10 * WINDOW, together=1, alone=1.6)
    assert not choice.alone
    assert run(choice, 100, together=1, alone=1.6) == 0


def test_where_waiting_is_not_known_the_speed_alone_decides():
    choice = ThreadChoice()
    assert run(choice, 50, together=1, alone=1.6, share=None) == 0
    run(choice, 2 * WINDOW + 2 * TRIAL, together=16, alone=2.4, share=None)
    assert choice.alone


def test_returning_to_all_threads_in_vain_becomes_rare():
    choice = ThreadChoice()
    machine = dict(together=16, alone=1.6, share=0.5, share_alone=0.0)  # one core is free
    run(choice, 500, **machine)
    assert run(choice, 1000, **machine) > 900


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_a_step_runs_with_the_chosen_threads_and_leaves_those_of_before(threads, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    choice, used = ThreadChoice(), []
    choice.alone = True
    choice.begin()
    used.append(torch.get_num_threads())
    choice.end()
    assert used == [1] and torch.get_num_threads() == threads

    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    choice.begin()
    assert torch.get_num_threads() == threads, 'the user chose'
    choice.end()


def test_the_time_that_a_thread_waits_for_a_core_never_falls():
    before = thread_choice.waited_for_core()
    assert before is None or 0 <= before <= thread_choice.waited_for_core()


def test_a_step_in_the_middle_of_another_leaves_the_number_of_threads_alone(monkeypatch):
    """As of a second thread that uses the same network."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        choice = ThreadChoice()
        choice.alone = True
        with choice.step():
            assert torch.get_num_threads() == 1
            with choice.step():
                pass
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
