"""Training and prediction beside busy processes: the share of their speed that they keep."""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from idle_threads import CHOSEN_BY, SETTINGS
from make_synthetic import cores

from benchmark import networks, train
from benchmark.report import Table, progress
from trunchier.ops.thread_choice import TRIAL, WINDOW, ThreadChoice

SIZE = (128, 96)  # (H, W) of the crops in training, as `make demo`
# What idle threads do in our commands, by themselves, and with OMP_WAIT_POLICY=passive.
WAITING = {'ours': SETTINGS, 'spin': {}, 'sleep': dict(OMP_WAIT_POLICY='passive')}
WARM_UP = WINDOW + 2 * TRIAL + 1  # steps until a number of threads is chosen


def add_arguments(add: Callable) -> None:
    add('--models', nargs=2, default=('VMHMR2.0-T-S2', 'VMPose-T-S2'), metavar=('TRAIN', 'PREDICT'))
    add('--batch', type=int, default=16, metavar='N', help='of training (default: 16)')
    add('--processes', type=int, default=cores(), metavar='N', help='default: one a core')
    add('--waiting', nargs='+', choices=WAITING, default=list(WAITING), help='of idle threads')


def run(args: argparse.Namespace) -> Table:
    if torch.device(args.device).type != 'cpu':
        raise ValueError(f'threads of the CPU are compared, --device is {args.device}; give cpu')
    rows = []
    for task, model in zip(('training', 'prediction'), args.models, strict=True):
        times = {waiting: dict(idle=[], busy=[]) for waiting in args.waiting}
        with contextlib.ExitStack() as stack:
            steps = {}
            for waiting in args.waiting:
                steps[waiting] = stack.enter_context(
                    worker(task, model, args.batch, WAITING[waiting], args.threads)
                )
            with busy_processes(args.processes) as switch:
                for turn in range(-1, args.rounds):  # the first is the warm-up
                    count = WARM_UP if turn < 0 else None
                    for waiting, state in _order(args.waiting, turn):
                        switch(state == 'busy')
                        seconds = steps[waiting](state, count, args.seconds)
                        if turn >= 0:
                            times[waiting][state].append(seconds)
                    progress(f'{task}, round {turn + 1} of {args.rounds}')
        for waiting in args.waiting:
            idle, busy = (statistics.median(times[waiting][state]) for state in ('idle', 'busy'))
            rows.append(dict(
                task=task, model=model, waiting=waiting, idle=1e3 * idle, busy=1e3 * busy,
                keeps=100 * idle / busy,
            ))  # fmt: skip
    columns = dict(
        task='task', model='model', waiting='idle threads', idle='idle ms / step',
        busy='busy ms / step', keeps='keeps %',
    )  # fmt: skip
    notes = [
        f'Busy: beside {args.processes} processes that compute without end. Keeps: share of the '
        f'speed without them. Training: batch {args.batch} of {SIZE[0]} x {SIZE[1]}; prediction: '
        'one crop, deployed. Idle threads spin, as OpenMP has it, sleep at once, or in our '
        'commands spin for a short time and then sleep'
    ]
    return Table('Busy machine', columns, rows, notes)


def _order(waiting, turn):
    """Both states of each, rotated from round to round."""
    pairs = [(each, state) for each in waiting for state in ('idle', 'busy')]
    return pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[Callable[[bool], None]]:
    """Processes that compute without end; yields a function that lets them go on, or stops them."""
    made = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(count)]

    def switch(on):
        for process in made:
            process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    switch(False)
    try:
        yield switch
    finally:
        for process in made:
            process.kill()
            process.wait()


@contextlib.contextmanager
def worker(
    task: str, model: str, batch: int, settings: dict, threads: int | None
) -> Iterator[Callable[[str, int | None, float], float]]:
    """A process that repeats a step; yields (state, number of steps, or at least so many seconds)
    -> median seconds of a step.
    """
    left_out = *CHOSEN_BY, 'OMP_NUM_THREADS'
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, '-m', 'benchmark.busy', task, model, str(batch), str(threads or '')],
        env=environment | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def steps(state, count, at_least):
        process.stdin.write(f'{state} {count or 0} {at_least}\n')
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f'the {task} of {model} ended with {process.wait()}, see above')
        return float(answer)

    with process:
        try:
            yield steps
        finally:
            process.kill()


def work(task: str, model: str, batch: str, threads: str) -> None:
    """The worker: a line `state count seconds` on stdin is answered by the median of its steps."""
    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(int(threads))
    if task == 'training':
        args = argparse.Namespace(device='cpu', size=SIZE)
        step = train.training_step(networks.build(model), 'fp32', int(batch), args)
    else:
        network, crop = networks.build(model, 'cpu', True), torch.randn(1, 3, *networks.SIZE)

        @torch.no_grad()
        def step():
            network(crop)

    choices = dict(idle=ThreadChoice(), busy=ThreadChoice())
    step()
    for line in sys.stdin:
        state, count, at_least = line.split()
        times = []
        while len(times) < max(int(count), 1) or sum(times) < float(at_least):
            start = time.perf_counter()
            with choices[state].step():
                step()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


if __name__ == '__main__':
    work(*sys.argv[1:])
