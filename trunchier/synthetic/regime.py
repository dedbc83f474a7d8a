"""How difficult images are, and the ingredients of the stream of harder people, each with a switch.

make_scene(rng, size, max_people=3, regime=HARD)
leave_out(cfg, 'cutout')        # of a config that trains on the stream
"""

from dataclasses import dataclass

from mmengine.config import ConfigDict

from .poses import CLIP_SHARE
from .wardrobe import HELD

TRUNCATED = 0.15  # fraction of images whose border cuts a person off
CROWD = 0.35  # fraction with several people, if max_people allows it


@dataclass(frozen=True)
class Regime:
    """How difficult images are. The defaults are those of `SyntheticPeople`.

    A default draws the same random numbers as if the option did not exist.
    """

    crowd: float = CROWD  # fraction with several people
    spread: float = 1.0  # distances between people, relative: below 1, more of them overlap
    truncated: float = TRUNCATED  # fraction whose border cuts a person off
    nearest: float = 2.2  # meters to the first person; nearer: wider fields of view
    natural: float = 0.0  # fraction of backgrounds from natural.py
    distractors: float = 0.0  # fraction with objects that resemble limbs
    captured: float = CLIP_SHARE  # fraction of poses from motion capture; others are recombined
    held: float = HELD  # fraction of hands with an object, of those whose position allows one

    def __post_init__(self):
        for name in ('crowd', 'truncated', 'natural', 'distractors', 'captured', 'held'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is {getattr(self, name)}; expected a fraction, 0 to 1')
        if not 0.8 <= self.nearest <= 8:
            raise ValueError(f'nearest is {self.nearest}; expected 0.8 to 8 meters')
        if not 0.3 <= self.spread <= 3:
            raise ValueError(f'spread is {self.spread}; expected 0.3 to 3')


USUAL = Regime()
HARD = Regime(crowd=0.5, spread=0.6, truncated=0.2, nearest=1.6, natural=0.3, distractors=0.25)

# Ingredients of the stream: what a regime is without them, or the type of a transform.
INGREDIENTS = {
    'crowd': dict(crowd=0.0),
    'overlap': dict(spread=1.0),
    'truncation': dict(truncated=0.0),
    'near': dict(nearest=2.2),
    'natural': dict(natural=0.0),
    'distractors': dict(distractors=0.0),
    'recombined': dict(captured=1.0),
    'held': dict(held=0.0),
    'half': 'RandomHalfBody',
    'jitter': 'JitterBox',
    'corruption': 'CorruptImage',
    'cutout': 'CutOut',
}


def leave_out(dataset: ConfigDict, name: str) -> None:
    """Remove an ingredient from the config of a `SyntheticKeypoints`.

    Raises:
        ValueError: no such ingredient.
    """
    if name not in INGREDIENTS:
        raise ValueError(f'no ingredient {name!r}; there are {", ".join(INGREDIENTS)}')
    what = INGREDIENTS[name]
    if isinstance(what, dict):
        dataset.regime = {**dataset.get('regime', {}), **what}
    else:
        dataset.pipeline = [step for step in dataset.pipeline if step['type'] != what]
