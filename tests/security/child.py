"""Run an attack in a process of its own: a crash of it is a result, not the end of the tests."""

import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import Any

MEMORY = 3 * 2**30  # bytes that the attacked process may add to its address space


def survive(function: Callable[..., Any], *arguments: Any, memory: int = MEMORY) -> None:
    """Call `function` in a forked process; AssertionError if it dies or raises.

    The process has a limit of memory, and dies by SIGALRM after two minutes.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open('/proc/self/statm') as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
            signal.alarm(120)
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), f'died by {signal.Signals(os.WTERMSIG(status)).name}'
    assert os.WEXITSTATUS(status) == 0, 'raised; see the captured output'
