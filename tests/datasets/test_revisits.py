"""Which images of a stream are shown again: the hardest but a few, after a block, a few times."""

from itertools import islice

import numpy as np
import pytest

from trunchier.datasets import MixSampler, RevisitSampler
from trunchier.datasets import people as module


class Endless:
    revisits = True

    def __len__(self):
        return 100


def sampler(share=0.25, skip=0.125, visits=2, block=16, seed=3):
    return RevisitSampler(Endless(), seed, share=share, skip=skip, visits=visits, block=block)


def hardness(image):
    """Of an image, whenever it is shown; no two are alike."""
    return (image * 37 % 101) + image / 1e4


def shown(index):
    return index[-1]


def run(of, count, batch=4, ahead=2, iterator=None):
    """`count` samples of a training that loads `ahead` batches before it trains on one."""
    iterator = iter(of) if iterator is None else iterator
    first = of.position
    loaded = list(islice(iterator, batch * ahead))
    for position in range(0, count, batch):
        loaded += islice(iterator, batch)
        trained = loaded[position : position + batch]
        of.tell(first + position, [hardness(shown(index)) for index in trained])
    return loaded[:count]


def test_the_hardest_of_a_block_but_a_few_are_shown_again_in_the_next_but_one():
    samples = run(sampler(), 64)
    assert samples[:32] == list(islice(MixSampler(Endless(), 3), 32))
    again = {shown(index) for index in samples[32:48] if len(index) == 3}
    assert again == set(sorted(range(16), key=hardness)[-6:-2])  # 16 / 8 left out, then 16 / 4


def test_samples_that_are_not_replaced_stay_at_their_positions():
    for position, (seed, place, *_) in enumerate(run(sampler(), 160)):
        assert (seed, place) == (3, position)


@pytest.mark.parametrize('visits', [1, 2, 3])
def test_no_image_is_shown_again_more_often_than_allowed(visits):
    images = [shown(index) for index in run(sampler(visits=visits), 640)]
    assert max(np.unique(images, return_counts=True)[1]) == 1 + visits


def test_the_share_is_kept_once_the_first_blocks_are_known():
    again = [len(index) == 3 for index in run(sampler(share=0.5), 320)]
    assert np.mean(again[32:]) == 0.5


def test_without_a_share_it_is_the_stream():
    assert run(sampler(share=0), 96) == list(islice(MixSampler(Endless(), 3), 96))


def test_loading_ahead_changes_nothing():
    assert run(sampler(), 96, ahead=0) == run(sampler(), 96, ahead=3)


@pytest.mark.parametrize('done', [4, 16, 36, 48, 100])
def test_a_resumed_run_shows_what_an_undisturbed_one_shows(done):
    straight = run(sampler(), 160)
    before, after = sampler(), sampler()
    run(before, done)
    next(iter(after))  # loaded before the checkpoint is read, as mmengine does
    after.load_state_dict(before.state_dict())
    after.position = done
    assert run(after, 160 - done) == straight[done:]


def test_a_run_resumed_without_what_was_known_begins_to_learn_it():
    other = sampler()
    other.position = 40
    samples = run(other, 100)
    again = [index for index in samples if len(index) == 3]
    assert again and all(shown(index) >= 40 for index in again)


def test_two_ranks_see_together_what_one_sees(monkeypatch):
    straight = run(sampler(), 96)
    both = []
    for rank in range(2):
        monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, 2))
        both.append(sampler())
    iterators = [iter(each) for each in both]
    seen = []
    for position in range(0, 96, 4):
        halves = [list(islice(each, 2)) for each in iterators]
        batch = [index for pair in zip(*halves, strict=True) for index in pair]
        for each in both:  # all ranks know all
            each.tell(position, [hardness(shown(index)) for index in batch])
        seen += batch
    assert seen == straight


def test_hopeless_and_broken_losses_do_not_come_back():
    of = sampler(share=0.25, skip=0)
    indices = iter(of)
    list(islice(indices, 16))
    of.tell(0, [np.nan, np.inf, 5, 6, 7, 8, *[1] * 10])
    list(islice(indices, 16))
    of.tell(16, [1] * 16)
    again = {shown(index) for index in islice(indices, 16) if len(index) == 3}
    assert again == {2, 3, 4, 5}


def test_losses_that_nobody_tells_are_missed():
    with pytest.raises(RuntimeError, match='needs RevisitHook in custom_hooks'):
        list(islice(iter(sampler()), 33))


def test_blocks_shorter_than_what_is_loaded_ahead_are_refused():
    with pytest.raises(RuntimeError, match=r'a block \(now 16\) of at least'):
        run(sampler(), 96, ahead=9)


def test_wrong_options_and_data_sets_are_named():
    for options, message in (
        (dict(share=1), 'share is 1'),
        (dict(skip=-0.1), 'skip is -0.1'),
        (dict(visits=0), 'visits is 0'),
        (dict(block=0), 'block is 0'),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(**options)
    with pytest.raises(TypeError, match='list cannot show an image again'):
        RevisitSampler([1], 3)


def test_a_resumed_run_keeps_its_blocks():
    with pytest.raises(ValueError, match='block=16, this one 32'):
        sampler(block=32).load_state_dict(sampler().state_dict())


def test_each_loss_is_told_once():
    of = sampler()
    list(islice(iter(of), 8))
    of.tell(0, [1, 2])
    with pytest.raises(ValueError, match='2 comes next'):
        of.tell(0, [1, 2])
