"""Trainings in which hard images are shown again: what is measured, workers, resumes, ranks."""

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from trunchier.datasets import RevisitSampler
from trunchier.engine.revisits import difficulties

ITERATIONS, BATCH, BLOCK = 24, 4, 16


class Pictures(Dataset):
    """Each is the number of its image and of its position."""

    revisits = True

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        _, position, *shown = index
        return dict(inputs=torch.tensor([shown[0] if shown else position, position]))


class Squares(nn.Module):
    """A loss as that of heatmaps."""

    def forward(self, found, target, weights):
        return (weights[..., None, None] * (found - target).square()).mean()


class Model(BaseModel):
    """Learns heatmaps of which a share of the images, told by their number, is hard."""

    def __init__(self):
        super().__init__()
        self.head = nn.Module()
        self.head.loss_module = Squares()
        self.level = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(list(inputs))
        self.seen += images.tolist()
        target = torch.sqrt(images[:, :1] * 37 % 101 + images[:, :1] / 1e4)[..., None, None]
        found = self.level.expand(len(images), 2, 3, 3)
        return dict(
            loss=self.head.loss_module(found, target.expand_as(found), torch.ones(len(images), 2))
        )


def train(folder, iterations=ITERATIONS, workers=0, hooks=('RevisitHook',), batch=BATCH, **runner):
    """[image, position] of each sample of this process."""
    sampler = dict(type='RevisitSampler', seed=3, block=BLOCK, skip=0.125)
    model = Model()
    Runner(
        model,
        str(folder),
        train_dataloader=dict(
            dataset=Pictures(), sampler=sampler, batch_size=batch, num_workers=workers
        ),
        train_cfg=dict(type='StreamTrainLoop', max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
        default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=5, by_epoch=False)),
        custom_hooks=[dict(type=name) for name in hooks],
        randomness=dict(seed=0),
        experiment_name=f'{folder.name}-{iterations}-{workers}',
        **runner,
    ).train()
    return model.seen


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmengine')


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    return train(tmp_path_factory.mktemp('straight'))


def test_the_images_with_the_largest_losses_are_shown_again(straight):
    third = {image for image, position in straight[2 * BLOCK : 3 * BLOCK] if image != position}
    hardest = sorted(range(BLOCK), key=lambda image: image * 37 % 101)
    assert third == set(hardest[-6:-2])
    assert sum(image != position for image, position in straight) == len(straight) // 4 - 8


def test_positions_are_those_of_the_stream(straight):
    assert [position for _, position in straight] == list(range(ITERATIONS * BATCH))


def test_the_number_of_workers_changes_nothing(straight, tmp_path):
    assert train(tmp_path, workers=1) == straight


@pytest.mark.parametrize('done', [5, 10])
def test_a_resumed_training_shows_the_same(straight, tmp_path, done):
    assert train(tmp_path, iterations=done) == straight[: done * BATCH]
    assert train(tmp_path, resume=True) == straight[done * BATCH :]


def test_weights_of_an_earlier_run_bring_no_memory_along(straight, tmp_path):
    train(tmp_path / 'a', iterations=10)
    started = train(tmp_path / 'b', load_from=str(tmp_path / 'a' / 'iter_10.pth'))
    assert [position for _, position in started] == [position for _, position in straight]
    assert started[: 2 * BLOCK] == straight[: 2 * BLOCK]


def test_without_the_hook_the_run_says_what_is_missing(tmp_path):
    with pytest.raises(RuntimeError, match='needs RevisitHook'):
        train(tmp_path, hooks=())


def test_the_hook_alone_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delattr(RevisitSampler, 'tell')
    with pytest.raises(TypeError, match='RevisitHook tells a RevisitSampler'):
        train(tmp_path)


def test_the_difficulty_of_one_person_is_the_loss_of_the_head():
    from mmpose.models.losses import KeypointMSELoss

    found, target = torch.rand(2, 5, 17, 8, 6)
    weights = torch.ones(5, 17)
    each = difficulties(found, target, weights)
    head = KeypointMSELoss(use_target_weight=True)
    for person in range(5):
        rows = slice(person, person + 1)
        torch.testing.assert_close(each[person], head(found[rows], target[rows], weights[rows]))


def test_keypoints_without_labels_do_not_count():
    found, target = torch.rand(2, 2, 17, 8, 6)
    weights = torch.ones(2, 17)
    weights[0, 3:], weights[1] = 0, 0
    first, second = difficulties(found, target, weights)
    torch.testing.assert_close(first, (found - target)[0, :3].square().mean())
    assert second == 0


def test_a_head_without_heatmaps_is_named():
    with pytest.raises(TypeError, match='measures heatmaps'):
        difficulties(torch.rand(2, 17, 64), torch.rand(2, 17, 64), torch.ones(2, 17))


def _train_rank(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    init_default_scope('mmengine')
    np.save(folder / f'{rank}.npy', train(folder, batch=BATCH // 2))
    torch.distributed.destroy_process_group()


def test_two_ranks_show_together_what_one_shows(straight, tmp_path):
    context = torch.multiprocessing.get_context('spawn')
    ranks = [context.Process(target=_train_rank, args=(rank, tmp_path)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert [each.exitcode for each in ranks] == [0, 0]
    both = np.concatenate([np.load(tmp_path / f'{rank}.npy') for rank in range(2)])
    assert both[both[:, 1].argsort()].tolist() == straight
