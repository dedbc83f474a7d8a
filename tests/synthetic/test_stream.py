"""Harder images of synthetic people, and the endless stream of them for pose training."""

import numpy as np
import pytest

pytest.importorskip('numba', reason='rendering requires numba')

from mmengine.config import Config  # noqa: E402

from trunchier.datasets import MixSampler  # noqa: E402
from trunchier.synthetic import SyntheticKeypoints, coco, people  # noqa: E402
from trunchier.synthetic.natural import draw_distractor, natural, spectrum  # noqa: E402
from trunchier.synthetic.regime import HARD, INGREDIENTS, Regime, leave_out  # noqa: E402

CONFIG = 'configs/embedded/td-hm_vm-t-s2_stream-256x192.py'
HARDER = dict(
    crowd=1.0, spread=0.4, truncated=1.0, nearest=1.0, natural=1.0, distractors=1.0, captured=1.0,
    held=1.0,
)  # fmt: skip


def images(count=12, **options):
    made = people.SyntheticPeople(seed=2, size=96, max_people=3, **options)
    return [made[index] for index in range(count)]


@pytest.fixture(scope='module')
def usual():
    return images()


@pytest.mark.parametrize('name', HARDER)
def test_each_ingredient_changes_images_by_itself(name, usual):
    harder = images(regime={name: HARDER[name]})
    changed = [(a['image'] != b['image']).any() for a, b in zip(usual, harder, strict=True)]
    assert sum(changed) >= 2


def test_without_ingredients_images_are_those_of_earlier_versions(usual):
    same = images(count=3, regime={})
    for a, b in zip(usual, same, strict=False):
        assert (a['image'] == b['image']).all()


@pytest.mark.parametrize('name', INGREDIENTS)
def test_leaving_an_ingredient_out_of_the_stream_changes_nothing_else(name):
    whole, cut = (Config.fromfile(CONFIG).train_dataloader.dataset for _ in range(2))
    leave_out(cut, name)
    changed = {key for key in HARDER if getattr(Regime(**cut.regime), key) != getattr(HARD, key)}
    removed = {step.type for step in whole.pipeline} - {step.type for step in cut.pipeline}
    assert len(changed) + len(removed) == 1
    if changed:  # as if the stream had never had it
        (key,) = changed
        assert cut.regime[key] in (0, 1, getattr(Regime(), key))


def test_an_unknown_ingredient_is_named():
    with pytest.raises(ValueError, match="no ingredient 'fog'; there are crowd, overlap"):
        leave_out(Config.fromfile(CONFIG).train_dataloader.dataset, 'fog')


def test_plain_images_have_no_ingredients():
    plain, hard = (images(3, plain=True, regime=regime) for regime in (None, HARDER))
    for a, b in zip(plain, hard, strict=True):
        assert (a['image'] == b['image']).all()


@pytest.mark.parametrize(
    ('regime', 'message'),
    [
        (dict(crowd=2), 'crowd is 2'),
        (dict(nearest=0.1), 'nearest is 0.1'),
        (dict(spread=0), 'spread is 0'),
        (dict(fog=1), r"\['fog'\]"),
    ],
)
def test_wrong_ingredients_are_named(regime, message):
    with pytest.raises(ValueError, match=message):
        people.SyntheticPeople(regime=regime)


def test_the_power_of_a_spectrum_falls_with_frequency_as_in_photographs():
    rng = np.random.default_rng(0)
    power = np.mean(
        [np.abs(np.fft.fft2(spectrum(rng, (128, 128)).mean(2)))[0, 1:40] ** 2 for _ in range(30)], 0
    )
    slope = np.polyfit(np.log(np.arange(1, 40)), np.log(power), 1)[0]
    assert -3.2 < slope < -1.2  # -2 in photographs (Field 1987)


def test_backgrounds_vary_and_distractors_cover_a_part_of_them():
    rng = np.random.default_rng(0)
    made = [natural(rng, (80, 60)) for _ in range(6)]
    assert all(image.shape == (60, 80, 3) and image.dtype == np.uint8 for image in made)
    assert len({image.tobytes() for image in made}) == 6
    shares = []
    for image in made:
        before = image.copy()
        draw_distractor(rng, image)
        shares.append((image != before).any(2).mean())
    assert 0.005 < np.mean(shares) < 0.6


def test_hard_data_sets_state_their_options(tmp_path):
    coco.write_coco(tmp_path / 'hard', 2, size=64, max_people=2, hard=True)
    with pytest.raises(FileExistsError, match='other options'):
        coco.write_coco(tmp_path / 'hard', 2, size=64, max_people=2)


def stream(**options):
    return SyntheticKeypoints(seed=1, length=10, size=96, max_people=2, **options)


def test_a_stream_repeats_no_image_and_does_not_depend_on_the_order():
    dataset = stream()
    sampler = MixSampler(dataset, seed=3)
    sampler.position = 7
    index = next(iter(sampler))
    assert index == (3, 7)
    first, other, again = dataset[index], dataset[3, 8], stream()[index]
    assert (first['img'] == again['img']).all()
    assert (first['keypoints'] == again['keypoints']).all()
    assert not np.array_equal(first['img'], other['img'])
    assert not np.array_equal(first['img'], dataset[4, 7]['img'])
    assert not np.array_equal(first['img'], dataset[7]['img'])  # beyond the finite set


def test_augmentation_depends_on_the_position_alone():
    draw = [dict(type='JitterBox')]
    index = (3, 5)
    np.random.seed(1)
    first = stream(pipeline=draw)[index]['bbox']
    np.random.seed(2)
    assert (stream(pipeline=draw)[index]['bbox'] == first).all()


def test_an_image_that_is_shown_again_has_the_same_person_and_another_augmentation():
    dataset = stream(pipeline=[dict(type='JitterBox')])
    first, again, later = dataset[3, 5], dataset[3, 40, 5], dataset[3, 40]
    for name in ('img', 'keypoints'):
        assert (first[name] == again[name]).all()
        assert not np.array_equal(later[name], again[name])
    assert (first['bbox'] != again['bbox']).any()


def test_the_config_of_the_weights_streams_hard_images_through_mmposes_pipeline():
    cfg = Config.fromfile(CONFIG)
    assert Regime(**cfg.regime) == HARD
    from mmengine.registry import init_default_scope
    from mmpose.registry import DATASETS

    init_default_scope('mmpose')
    packed = DATASETS.build(cfg.train_dataloader.dataset)[0, 1]
    assert packed['inputs'].shape == (3, 256, 192)
    heatmaps = packed['data_samples'].gt_fields.heatmaps
    assert heatmaps.shape == (17, 64, 48)
    seen = packed['data_samples'].gt_instance_labels.keypoint_weights[0] > 0
    assert seen.any() and (heatmaps.amax((1, 2))[seen] > 0.5).all()
