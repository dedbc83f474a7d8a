"""ViTPose++: experts and heads of several data sets; one of them as a plain ViTPose.

"ViTPose++: Vision Transformer for Generic Body Pose Estimation", section 3.2: the last rows of the
second layer of each FFN belong to an expert, one a data set. Next to those of the chosen data set
the shared rows make a plain layer, so inference costs nothing. The authors' script leaves the
experts and heads of the others in its files; here they are left out.
"""

import re

import torch

from .families import State

DATASETS = ('coco', 'aic', 'mpii', 'ap10k', 'apt36k', 'wholebody')  # in the order of the authors
# Keys of the authors and of transformers (`mlp`), ours (`ffn`).
EXPERT = re.compile(r'(.*\.)(mlp|ffn)\.experts\.(?:experts\.)?(\d+)\.(weight|bias)')
SHARED = {'mlp': 'mlp.fc2', 'ffn': 'ffn.layers.1'}
NORMS = ('norm2', 'layernorm_after', 'ln2')  # before the FFN
HEAD = re.compile(r'(.*?)(associate_keypoint_heads|head\.heads)\.(\w+)\.(.*)')


def dataset_number(name: str | int) -> int:
    """Number of a data set by its name in `DATASETS` or by itself; ValueError if unknown."""
    text = str(name).lower().replace('-', '')
    if text in DATASETS:
        return DATASETS.index(text)
    if text.isdecimal():
        return int(text)
    raise ValueError(f'no data set {name!r}; give one of {", ".join(DATASETS)} or a number')


def expert_numbers(state: State) -> list[int]:
    """Numbers of the experts in a state_dict, in order."""
    return sorted({int(match[3]) for key in state if (match := EXPERT.fullmatch(key))})


def split_expert(state: State, expert: str | int, head: bool = True) -> State:
    """Plain ViTPose of one data set: under the file's own names, less all other experts and heads.

    Args:
        state: of a ViTPose++ of its authors, of transformers or of this package, or of any encoder
            with several heads.
        expert: name in `DATASETS`, or number.
        head: keep the head of that data set; False: no head.

    Raises:
        ValueError: neither experts nor several heads in the file, not this expert, no head for it,
            or layers that were merged with an expert before.
    """
    number, numbers = dataset_number(expert), expert_numbers(state)
    if not numbers and any(HEAD.fullmatch(key) for key in state):
        return _one_head(state, number, head)
    if not numbers:
        raise ValueError('the file has no experts; it is a plain ViTPose, or no ViTPose')
    if number not in numbers:
        named = ', '.join(f'{k} ({DATASETS[k]})' if k < len(DATASETS) else str(k) for k in numbers)
        raise ValueError(f'no expert {expert!r} in the file; it has {named}')
    plain = {k: v for k, v in state.items() if not EXPERT.fullmatch(k)}
    for key, rows in state.items():
        match = EXPERT.fullmatch(key)
        if match is None or int(match[3]) != number:
            continue
        start, kind, _, leaf = match.groups()
        norm = next(key for name in NORMS if (key := f'{start}{name}.bias') in state)
        shared = f'{start}{SHARED[kind]}.{leaf}'
        if len(state[shared]) + len(rows) != len(state[norm]):
            raise ValueError(
                f'{shared} has {len(state[shared])} of {len(state[norm])} rows: the file was split '
                'already; read it as it is'
            )
        plain[shared] = torch.cat((state[shared], rows))
    return _one_head(plain, number, head)


def _one_head(state, number, keep):
    """`state` with the head of one data set under the name of a single head, or with none."""
    heads, rest = {}, {}
    for key, value in state.items():
        if match := HEAD.fullmatch(key):
            single = 'head' if match[2] == 'head.heads' else 'keypoint_head'
            heads.setdefault(_head_number(match), {})[f'{match[1]}{single}.{match[4]}'] = value
        elif re.match(r'(.*\.)?(keypoint_head|head)\.', key):
            heads.setdefault(0, {})[key] = value
        else:
            rest[key] = value
    if not keep or not heads:
        return rest
    if number not in heads:
        raise ValueError(
            f'the file has no head for data set {number}, only for {sorted(heads)}; keep the '
            'backbone alone (--no-head) and train a head'
        )
    return rest | heads[number]


def _head_number(match):
    """Number of the data set of a head: ours by name, the authors' less that of COCO by number."""
    if match[2] == 'head.heads':
        return dataset_number(match[3].removeprefix('coco_'))
    return int(match[3]) + 1


def expert_entries(state: State) -> State:
    """All experts under our keys: {'layers.3.ffn.experts.5.weight': ...}."""
    found = {}
    for key, value in state.items():
        if match := EXPERT.fullmatch(key):
            block = re.findall(r'\d+', match[1])[-1]
            found[f'layers.{block}.ffn.experts.{match[3]}.{match[4]}'] = value
    return found
