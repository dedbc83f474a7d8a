"""Fills fresh tensors with NaN, so that a kernel that reads what it did not write is found."""

import torch


def poison(set_attribute):
    """Let torch.empty, torch.empty_like and Tensor.new_empty return NaN.

    numpy's stay, which numba compiles by identity.

    Args:
        set_attribute: setattr, or a monkeypatch's.
    """

    def poisoned(make):
        def empty(*args, **kwargs):
            made = make(*args, **kwargs)
            if made.is_floating_point() and not made.is_meta and not made.requires_grad:
                made.fill_(float('nan'))
            return made

        return empty

    for owner, name in ((torch, 'empty'), (torch, 'empty_like'), (torch.Tensor, 'new_empty')):
        set_attribute(owner, name, poisoned(getattr(owner, name)))
