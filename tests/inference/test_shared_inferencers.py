"""One inferencer in several threads gives what it gives in one, bit for bit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_models import BACKBONES, config, noise, pose_config, write_weights

from trunchier.inference.pose import PoseInferencer

THREADS, CALLS = 4, 4
PATIENCE = 60  # seconds that a broken test waits


def arrays(result):
    found = {name: np.asarray(value) for name, value in result.pred_instances.items()}
    return found | {'drawing': result.visualization}


def predict(infer, seed):
    """Two images of different content and number of people."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 200, (2, 3 + seed % 3, 2, 2)), axis=2)
    boxes = [np.float32(each.reshape(-1, 4) + [0, 0, 20, 20]) for each in corners]
    images = [noise(220, 240, seed=2 * seed + each) for each in range(2)]
    painter = infer.shared_painter
    found = infer(images, bboxes=boxes, return_vis=True, painter=painter)
    return [arrays(result) for result in found]


def assert_threads_agree(infer):
    infer.shared_painter = infer.painter(draw_bbox=True)
    expected = [predict(infer, seed) for seed in range(CALLS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda seed: predict(infer, seed % CALLS), range(2 * CALLS)))
    for call, results in enumerate(together):
        for result, wanted in zip(results, expected[call % CALLS], strict=True):
            assert result.keys() == wanted.keys()
            for name, array in wanted.items():
                np.testing.assert_array_equal(result[name], array, err_msg=f'{call}: {name}')


@pytest.mark.parametrize(
    'task, family', [*(('pose', family) for family in BACKBONES), ('mesh', 'swin')]
)
def test_threads_get_what_one_thread_gets(task, family, inferencer_types, tmp_path):
    write_weights(config(task, family), tmp_path / 'a.pth')
    infer = inferencer_types[task](
        config(task, family), tmp_path / 'a.pth', device='cpu', batch_size=2
    )
    assert_threads_agree(infer)


@pytest.fixture
def simcc(tmp_path):
    """A model whose head is not one of heatmaps: mmpose's own `predict` runs."""
    cfg = pose_config()
    codec = dict(type='SimCCLabel', input_size=(192, 256), sigma=6.0, simcc_split_ratio=2.0)
    cfg.model.head = dict(
        type='SimCCHead', in_channels=64, out_channels=17, input_size=(192, 256),
        in_featuremap_size=(12, 16), simcc_split_ratio=2.0, deconv_out_channels=None,
        loss=dict(type='KLDiscretLoss'), decoder=codec,
    )  # fmt: skip
    import torch
    from mmpose.apis import init_model

    torch.save(dict(state_dict=init_model(cfg, None, 'cpu').state_dict()), tmp_path / 'a.pth')
    return PoseInferencer(cfg, tmp_path / 'a.pth', device='cpu', batch_size=2)


def test_threads_of_another_head_get_what_one_thread_gets(simcc):
    assert_threads_agree(simcc)


def test_two_threads_between_network_and_decoding_keep_their_outputs(simcc):
    """Each waits, its output handed over, until the other's is handed over too."""
    both, model = threading.Barrier(2, timeout=PATIENCE), simcc.predictor.network.model
    seeds = (0, 1)
    simcc.shared_painter = simcc.painter()
    crops = [[simcc.predictor.crop(noise(220, 240, seed=s), np.float32([5, 5, 200, 210]))]
             for s in seeds]  # fmt: skip
    expected = [simcc.predictor.forward(each).tensors for each in crops]

    def meet(*given):
        both.wait()

    model.add_pred_to_datasample = meet
    with ThreadPoolExecutor(2) as pool:
        found = [output.tensors for output in pool.map(simcc.predictor.forward, crops)]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and len(one) > 0
        for name, tensor in other.items():
            assert tensor.equal(one[name])
    assert not expected[0]['output0'].equal(expected[1]['output0'])
