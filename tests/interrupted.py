"""A loop that is interrupted at any of its lines, as a signal handler's exception would do it."""

import sys
from collections.abc import Iterator


def interrupted_at(moment: int, items: Iterator) -> bool:
    """Loop over `items`, with an interruption at the n-th line that this thread runs meanwhile.

    Returns False if the loop ended before.
    """
    seen = 0

    def count(frame, event, _):
        nonlocal seen
        if frame.f_globals['__name__'] == '_weakrefset':  # called back: its exceptions are ignored
            return None
        seen += event == 'line'
        if seen == moment:
            raise KeyboardInterrupt
        return count

    sys.settrace(count)
    try:
        for _ in items:
            pass
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False
