"""Worker processes and signals: a run that ends, in whatever way, leaves no process behind.

with clean_end():                                    # in main() of a command
    for result in in_processes(work, items, workers=4):
        ...

clean_end       SIGTERM, SIGHUP and Ctrl-C end the block as exceptions do: `finally` clauses run
in_processes    `map` over worker processes, which end with this process and with the loop
follow_parent   for workers that others start, such as `worker_init_fn` of a DataLoader
"""

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ENDING = [
    getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, name)
]
PR_SET_PDEATHSIG = 1  # of prctl, Linux
AHEAD = 2  # results of a worker that are read before they are asked for


@contextlib.contextmanager
def clean_end() -> Iterator[None]:
    """`with clean_end():` or `@clean_end()`: a signal raises SystemExit(128 + its number) inside.

    Files under their final names are then complete or absent (`whole_file`, `whole_folder`), and
    the workers of `in_processes` are gone. Further signals are ignored meanwhile. Signals that were
    ignored before stay so (nohup). Outside of the main thread, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    received = []

    def end(number, frame):
        received.append(signal.Signals(number).name)
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        if received:
            print(f'stopped by {received[0]}', file=sys.stderr)
        for number, old in before.items():
            signal.signal(number, old)


def follow_parent(*_: Any) -> None:
    """To be called in a worker process: it is killed when its parent ends, in whatever way.

    Ctrl-C, which a terminal sends to all of its processes, is left to the parent. On Linux, the
    parent is the thread that started the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent.pid:  # it ended before that
            os._exit(1)
    elif parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent):
    parent.join()
    os._exit(1)


def in_processes(
    work: Callable, items: Sequence, workers: int, method: str = 'spawn', patience: float = 300
) -> Iterator:
    """`map(work, items)` in worker processes, in order.

    Each worker takes every `workers`-th chunk of items. All are killed when the loop over the
    results ends, also by an exception; use `contextlib.closing` where that shall not wait for the
    garbage collector.

    Args:
        method: 'fork' or 'spawn', see multiprocessing.
        patience: seconds without a result after which a worker counts as stopped.

    Raises:
        RuntimeError: a worker was killed or has stopped. Exceptions of `work` are raised as here.
    """
    context: Any = multiprocessing.get_context(method)
    chunk = max(1, min(16, len(items) // (4 * workers)))
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    processes, ends, readers = [], [], []
    # Written in C: an exception of a signal handler, raised at any place, leaves no lock behind.
    results = [queue.SimpleQueue() for _ in range(workers)]
    permits = [queue.SimpleQueue() for _ in range(workers)]  # to read one more result
    try:
        for k in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            ends.append(ours)
            arguments = work, chunks[k::workers], theirs
            processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
        # Threads read, since a worker may stop in the middle of a result; after all forks.
        for each in zip(ends, results, permits, strict=True):
            readers.append(threading.Thread(target=_read, args=each, daemon=True))
            readers[-1].start()
        for permit in permits:
            for _ in range(AHEAD):
                permit.put(True)
        for number in range(len(chunks)):
            k = number % workers
            done, error, place = _wait(results[k], processes[k], patience)
            permits[k].put(True)
            if error is not None:
                raise error from RuntimeError(place)
            yield from done
    finally:
        processes = [each for each in processes if each.is_alive()]  # started, and not ended yet
        for process in processes:
            process.kill()
        for permit in permits:
            permit.put(False)
        for process in processes:
            process.join()
        for reader in readers:
            if reader.is_alive():
                reader.join()
        for end in ends:
            end.close()


def _serve(work, chunks, end):
    """Main function of a worker: sends (results of a chunk, exception or None, its traceback)."""
    follow_parent()
    try:
        for chunk in chunks:
            end.send(([work(item) for item in chunk], None, ''))
    except Exception as error:
        end.send((None, error, f'in a worker process:\n{traceback.format_exc()}'))


def _read(end, results, permits):
    with contextlib.suppress(EOFError, OSError):  # the worker has ended
        while permits.get():
            results.put(end.recv())
    results.put(None)


def _wait(results, process, patience):
    # Many short waits: the time during which this process itself is stopped does not count.
    for _ in range(max(1, int(patience / 0.5))):
        with contextlib.suppress(queue.Empty):
            result = results.get(timeout=0.5)
            if result is not None:
                return result
            process.join()
            raise RuntimeError(
                f'worker process {process.pid} {_end_of(process.exitcode)} before its work was '
                'done; if the system killed it for lack of memory, use fewer workers'
            )
    raise RuntimeError(
        f'worker process {process.pid} has sent nothing for {patience:g} s: it is stopped, or hangs'
    )


def _end_of(exitcode):
    if exitcode < 0:
        return f'was killed by {signal.Signals(-exitcode).name}'
    return f'ended with status {exitcode}'
