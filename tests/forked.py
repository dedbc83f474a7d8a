"""Run the `main` of a tool in a fork of this process: at once, with its imports and kernels."""

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

LONG = 240  # seconds; a bound that only a failure reaches


class Run:
    """`main(arguments)` in a fork with a session of its own.

    OpenCV must have no threads: `cv2.setNumThreads(1)` before.

    Args:
        log: file of its output.
        prepare: called in the fork before.
    """

    def __init__(self, log, main, *arguments, prepare=None):
        self.log = Path(log)
        self.log.touch()
        self.process = os.fork()
        if self.process == 0:
            become(log, main, [*map(str, arguments)], prepare)

    def kill(self, number):
        os.kill(self.process, number)

    def wait(self):
        """Exit status; negative: the signal that killed it."""
        until(lambda: ended(self.process), f'the end of the run; {self.log.read_text()}')
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def workers(self):
        """Processes of its session but the first, that have not ended."""
        return [pid for pid in processes_of_session(self.process) if pid != self.process]

    def end(self):
        """Kill what is left of it, where a test has failed."""
        for process in processes_of_session(self.process):
            os.kill(process, signal.SIGKILL)


def become(log, main, arguments, prepare):
    code = 1
    try:
        os.setsid()
        faulthandler.dump_traceback_later(LONG - 5)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, 'w') for number in (1, 2))
        sys.argv = [main.__module__, *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored in tests under nohup
        if prepare is not None:
            prepare()
        main()
        code = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# --- What may be prepared -------------------------------------------------------------------------
def full_disk(size):
    """No file can become larger than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_privileges():
    """Permissions of files hold for the superuser, too."""
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), 'capset')


def killed_at(moment, folder):
    """Kill this process at the n-th file that it opens for writing, renames or removes there."""
    seen, process = [], os.getpid()

    def watch(event, arguments):
        if event not in ('open', 'os.rename', 'os.remove', 'os.mkdir') or os.getpid() != process:
            return
        if event == 'open' and arguments[1] is not None and not set('wax+') & set(arguments[1]):
            return
        if str(arguments[0]).startswith(str(folder)):
            seen.append(event)
            if len(seen) == moment:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(watch)


# --- Waiting --------------------------------------------------------------------------------------
def until(condition, text):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f'not within {LONG} s: {text}'
        time.sleep(0.01)


def status(process):
    """(state, session) of a process; state 'Z' if it has ended."""
    try:
        fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 'Z', 0
    return fields[0], int(fields[3])


def ended(process):
    return status(process)[0] == 'Z'


def processes_of_session(session):
    everyone = [int(path.name) for path in Path('/proc').iterdir() if path.name.isdigit()]
    found = {process: status(process) for process in everyone}
    return [process for process, (state, its) in found.items() if its == session and state != 'Z']
