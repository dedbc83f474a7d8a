"""Official checkpoints in, ours out.

Each family has one function from its authors' state_dict to ours: a table of renames, then what
a regular expression cannot say.
"""

import re


def rename(state, table):
    """Apply every row (pattern, replacement) of `table`, in order, to the keys of `state`."""
    for pattern, replacement in table:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state
