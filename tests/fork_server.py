"""Run the tools many times without importing anew: a process that forks a child for each run.

A child can be killed at a moment chosen by events: opening for writing, renaming or removal of a
checkpoint or of the pointer to it.
"""

import atexit
import ctypes
import importlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class ForkServer:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
        )

    def start(self, log, *arguments, kill_at=None, file_limit=None):
        """Start `tools/ARGUMENTS...`, its output in `log`; returns the process id."""
        asked = dict(
            log=str(log), arguments=[*map(str, arguments)], kill_at=kill_at, file_limit=file_limit
        )
        Path(log).write_text('')
        self.process.stdin.write(json.dumps(asked) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait(self):
        """Exit code of the child; negative: the signal that killed it."""
        return json.loads(self.process.stdout.readline())

    def run(self, *arguments, **options):
        self.start(*arguments, **options)
        return self.wait()

    def close(self):
        self.process.kill()
        self.process.wait()


def serve():
    for name in ('trunchier', 'mmpose.apis', 'matplotlib.pyplot'):  # what each run needs
        importlib.import_module(name)
    sys.path.insert(0, str(ROOT / 'tools'))
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            become(**asked)
        answers.write(f'{child}\n')
        answers.write(f'{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n')


def become(log, arguments, kill_at, file_limit):
    """Turn this process into `python tools/ARGUMENTS...`, which ends with its parent."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        if kill_at is not None:
            sys.addaudithook(killer(kill_at))
        if file_limit is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.argv = arguments
        runpy.run_path(str(ROOT / 'tools' / arguments[0]), run_name='__main__')
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        leave(code)


def leave(code):
    """End as an interpreter does."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def killer(moment):
    """Audit hook that kills this process at an event of a checkpoint or of the pointer to it.

    Args:
        moment: number of the event, or a pattern such as 'os.rename .epoch_2'.
    """
    seen = []
    process = os.getpid()

    def watch(event, arguments):
        if event not in ('open', 'os.rename', 'os.remove') or os.getpid() != process:
            return
        if event == 'open' and not (isinstance(arguments[1], str) and 'w' in arguments[1]):
            return
        name = os.path.basename(str(arguments[0]))
        if '.pth' in name or 'last_checkpoint' in name:
            seen.append(f'{event} {name}')
            if moment == len(seen) or isinstance(moment, str) and re.match(moment, seen[-1]):
                os.write(2, f'killed at {seen[-1]}\n'.encode())
                os.kill(process, signal.SIGKILL)

    return watch


if __name__ == '__main__':
    serve()
