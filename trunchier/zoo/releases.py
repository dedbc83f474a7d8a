"""Official files: addresses, purpose, licenses; and the weights that ship here. Data only.

A hash or a size that is not known is left empty. OpenMMLab writes the first 8 digits of a file's
SHA-256 into its name; the others were stated by those who downloaded the file (docs/weights.md).
"""

import fnmatch
from typing import NamedTuple

# Files that their authors do not offer by a direct address are put here, or into the cache.
BY_HAND = 'data/checkpoints/'

OPENMMLAB = 'https://download.openmmlab.com/'
MMPOSE = OPENMMLAB + 'mmpose/v1/'
VITPOSE = MMPOSE + 'body_2d_keypoint/topdown_heatmap/coco/td-hm_ViTPose-'
MMSWIN = OPENMMLAB + 'mmclassification/v0/swin-transformer/convert/swin_'
SWIN = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
VMAMBA = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/'
YOLOX = 'https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/'
HUGGING_FACE = 'https://huggingface.co/usyd-community/'

APACHE = 'Apache-2.0'
MIT = 'MIT'
MAE = 'CC BY-NC 4.0 (not for commercial use)'
SMPL = 'MIT; its SMPL body: https://smpl.is.tue.mpg.de (not for commercial use)'

COCO = 'people of COCO, 17 keypoints'
IMAGENET = 'ImageNet-1K classifier; training starts from it'
MAE_WEIGHTS = 'MAE on ImageNet-1K; training of ViTPose starts from it'
LIGHTNING = HUMANS, TRUNC = '4D-Humans (Lightning)', 'TruncHierVFM (Lightning)'  # for SMPL
DETECTOR = 'boxes of people, trained on COCO'


class Release(NamedTuple):
    """An official file.

    Attributes:
        what: what it is and what it was trained on.
        license: of the weights, as their authors state it.
        layout: naming of its keys, or its format.
        urls: addresses of the same file; empty: only by hand.
        file: its name in the cache or in `BY_HAND`; '': as in the first address.
        sha256: all or the first of the file's 64 digits; '': unknown.
        size: bytes; 0: unknown.
        member: the addresses are of an archive (.zip, .tar.gz), the file is its largest part whose
            name ends like this, see `files.download`.
        beside: {other part of the archive: name under which it is kept beside the file}.
        by_hand: page where a person can download it.
        model: the model that these weights complete, if any.
    """

    what: str
    license: str
    layout: str
    urls: tuple[str, ...] = ()
    file: str = ''
    sha256: str = ''
    size: int = 0
    member: str = ''
    by_hand: str = ''
    model: str = ''
    beside: dict[str, str] | None = None

    @property
    def filename(self) -> str:
        """Its name on this machine, without a folder."""
        return self.file or self.urls[0].rpartition('/')[2]

    @property
    def smpl(self) -> bool:
        """Whether the model was trained for SMPL's body, whose shapes mean something else here."""
        return self.layout in LIGHTNING

    @property
    def access(self) -> str:
        """'direct' if `trunchier download` can fetch it, else 'by hand'."""
        return 'direct' if self.urls else 'by hand'


def _vitpose(size: str, tail: str, model: str) -> Release:
    """OpenMMLab's ViTPose; its name ends with the hash and a date: size-simple_...-HASH_DATE."""
    url = f'{VITPOSE}{size}_8xb64-210e_coco-256x192-{tail}.pth'
    return Release(COCO, APACHE, 'mmpose 1.x', (url,), sha256=tail[:8], model=model)


def _transformers(name: str) -> Release:
    url = f'{HUGGING_FACE}{name}/resolve/main/model.safetensors'
    return Release(COCO, APACHE, 'transformers', (url,), file=f'{name}.safetensors')


def _vitpose_plus(name: str) -> Release:
    what = 'people of COCO, animals and other sets: one expert for each'
    return _transformers(name)._replace(what=what)


def _by_hand(what: str, license: str, layout: str, file: str, page: str, **facts) -> Release:
    return Release(what, license, layout, file=file, by_hand=page, **facts)


def _swin(file: str, converted: str) -> Release:
    # The same weights with mmpretrain's keys are a second source, read by the same loader.
    urls = (SWIN + file, MMSWIN + converted)
    return Release(IMAGENET, MIT, 'official', urls[:1], by_hand=urls[1])


def _gmf(size: str, share: str) -> Release:
    page = f'https://connecthkuhk-my.sharepoint.com/:f:/g/personal/rhettgee_connect_hku_hk/{share}'
    return _by_hand(IMAGENET, MIT, 'official', f'groupmixformer_{size}.pth', page)


def _mae(size: str) -> Release:
    url = f'{MMPOSE}pretrained_models/mae_pretrain_vit_{size}_20230913.pth'
    return Release(MAE_WEIGHTS, MAE, 'mmpretrain', (url,))


PAPER = 'https://github.com/nttcom/TruncHierVFM'
AUTHORS = 'https://github.com/ViTAE-Transformer/ViTPose#results-from-this-repo-on-ms-coco-val-set'
BERKELEY = 'https://people.eecs.berkeley.edu/~jathushan/projects/4dhumans/'
UTEXAS = 'https://www.cs.utexas.edu/~pavlakos/4dhumans/'

RTMDET = (
    'https://github.com/open-mmlab/mmdetection/tree/main/configs/rtmdet (export '
    'rtmdet_tiny_8xb32-300e_coco by MMDeploy; or, with mmdet installed, --detector rtmdet-tiny '
    'takes it from there)'
)

# fmt: off
RELEASES = {
    # models, by the paper's names
    'ViTPose-S': _vitpose('small', '62d7a712_20230314', 'ViTPose-S'),
    'ViTPose-B': _vitpose('base',  '216eae50_20230314', 'ViTPose-B'),
    'ViTPose-L': _vitpose('large', '53609f55_20230314', 'ViTPose-L'),
    'ViTPose-H': _vitpose('huge',  'e32adcd4_20230314', 'ViTPose-H'),
    'HMR2.0-H': Release(
        "people of 4D-Humans' mix, bodies (HMR2.0b)", SMPL, HUMANS,
        (UTEXAS + 'hmr2_data.tar.gz', BERKELEY + 'hmr2_data.tar.gz'),
        file='HMR2.0-H.ckpt', model='HMR2.0-H',
        member='*.ckpt',
        # Mean parameters, and the regressor of 19 more joints (for tools/convert_smpl.py).
        beside={name: name for name in ('smpl_mean_params.npz', 'SMPL_to_J19.pkl')},
    ),
    'HMR2.0-S': _by_hand(
        "people of 4D-Humans' mix, bodies", 'see the page', TRUNC,
        'HMR2.0-S.ckpt', f'{PAPER} (last.ckpt in hmr_vit-small_d3-a4x16-m128.zip)',
        sha256='823728e846c901c75edb12d469fa240e07606a24cfd44c208244a94bb26fc423', model='HMR2.0-S',
    ),
    # the same models with other decoders, from other people, trained on more
    'ViTPose-S-simple': _vitpose('small-simple', '4c101a76_20230314', ''),
    'ViTPose-B-simple': _vitpose('base-simple',  '0b8234ea_20230407', ''),
    'ViTPose-L-simple': _vitpose('large-simple', '3a7ee9e1_20230314', ''),
    'ViTPose-H-simple': _vitpose('huge-simple',  'ffd48c05_20230314', ''),
    'ViTPose-B-transformers':        _transformers('vitpose-base'),
    'ViTPose-B-simple-transformers': _transformers('vitpose-base-simple'),
    'ViTPose++-S-transformers': _vitpose_plus('vitpose-plus-small'),
    'ViTPose++-B-transformers': _vitpose_plus('vitpose-plus-base'),
    'ViTPose++-L-transformers': _vitpose_plus('vitpose-plus-large'),
    'ViTPose++-H-transformers': _vitpose_plus('vitpose-plus-huge'),
    'ViTPose-B-authors': _by_hand(COCO, APACHE, 'mmpose 0.x', 'vitpose-b.pth', AUTHORS),
    'ViTPose-L-authors': _by_hand(COCO, APACHE, 'mmpose 0.x', 'vitpose-l.pth', AUTHORS),
    'ViTPose-H-authors': _by_hand(COCO, APACHE, 'mmpose 0.x', 'vitpose-h.pth', AUTHORS),
    'HMR2.0a-H': Release(
        "people of 4D-Humans' mix, bodies (HMR2.0a)", SMPL, HUMANS,
        by_hand=UTEXAS + 'hmr2a_model.tar.gz', file='HMR2.0a-H.ckpt',
    ),
    # backbones, by the names of `BACKBONES`
    'swin-b': _swin('swin_base_patch4_window7_224.pth',  'base_patch4_window7_224-4670dd19.pth'),
    'swin-s': _swin('swin_small_patch4_window7_224.pth', 'small_patch4_window7_224-cc7a01c9.pth'),
    'swin-t': _swin('swin_tiny_patch4_window7_224.pth',  'tiny_patch4_window7_224-160bb0a5.pth'),
    'gmf-b':  _gmf('base',  'Env1DBxPFZpMifAaVhHpKYgB3O4urE34o4b9_g4Jr-JfQQ?e=C6ed1c'),
    'gmf-s':  _gmf('small', 'Em7lUESSPaFPowQotlsUi1sBjA9uVldOUi2mbqdF40Uktw?e=ExCTeU'),
    'gmf-t':  _gmf('tiny',  'EnRAzY3LalhGmqx91sEIqrUBLoa5ISS9kOw1ujNcOWSrzA?e=vkCUTZ'),
    'vm-b':   Release(IMAGENET, MIT, 'official', (VMAMBA + 'vssm_base_0229_ckpt_epoch_237.pth',)),
    'vm-s':   Release(IMAGENET, MIT, 'official', (VMAMBA + 'vssm_small_0229_ckpt_epoch_222.pth',)),
    'vm-t':   Release(IMAGENET, MIT, 'official', (VMAMBA + 'vssm1_tiny_0230s_ckpt_epoch_264.pth',)),
    'vit-h':  _mae('huge'),
    'vit-l':  _mae('large'),
    'vit-b':  _mae('base'),
    'vit-s':  _mae('small'),
    # detectors
    'yolox-nano': Release(
        DETECTOR, APACHE, 'ONNX', (YOLOX + 'yolox_nano.onnx',), size= 3_659_407,
        sha256='c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d',
    ),
    'yolox-tiny': Release(
        DETECTOR, APACHE, 'ONNX', (YOLOX + 'yolox_tiny.onnx',), size=20_219_662,
        sha256='427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7',
    ),
    'yolox-s': Release(
        DETECTOR, APACHE, 'ONNX', (YOLOX + 'yolox_s.onnx',),    size=35_858_002,
        sha256='c5c2d13e59ae883e6af3b45daea64af4833a4951c92d116ec270d9ddbe998063',
    ),
    'rtmdet-nano': Release(
        'boxes of people, trained on COCO and Objects365', APACHE, 'ONNX, by MMDeploy',
        (MMPOSE + 'projects/rtmposev1/onnx_sdk/rtmdet_nano_8xb32-100e_coco-obj365-person-05d8511e'
         '.zip',),
        file='rtmdet-nano.onnx', member='*.onnx',
        sha256='8297e829ccc5590c8e2d32d5a211f322a0585fb7467eec85eb12c9525b0b95d6',
    ),
    'rtmdet-tiny': _by_hand(  # OpenMMLab publishes it for mmdet only, not for onnxruntime
        DETECTOR, APACHE, 'ONNX, by MMDeploy', 'rtmdet-tiny.onnx', RTMDET,
    ),
    'rtmdet-m': Release(
        'boxes of people, trained on COCO and Objects365', APACHE, 'ONNX, by MMDeploy',
        (MMPOSE + 'projects/rtmposev1/onnx_sdk/rtmdet_m_8xb32-100e_coco-obj365-person-235e8209'
         '.zip',),
        file='rtmdet-m.onnx', member='*.onnx',
    ),
}
# fmt: on

# What a config names as the initial weights of each backbone: an address, or a file.
WEIGHTS = {
    name: row.urls[0] if row.urls else BY_HAND + row.filename
    for name, row in RELEASES.items()
    if name.rpartition('-')[0] in ('swin', 'gmf', 'vm', 'vit')
}

# Models whose weights are in `assets`: the config that they were trained with.
SHIPPED = {
    'VMPose-T-S2': 'configs/embedded/td-hm_vm-t-s2_synthetic-256x192.py',
    'VMHMR2.0-T-S2': 'configs/embedded/hmr2_vm-t-s2_stream-256.py',
}

# What to expect of those on photos; the command says it.
EXPECT = {
    'VMPose-T-S2': 'expect clear, upright people to be found, others not',
    'VMHMR2.0-T-S2': 'expect bodies that are bent too little; better: --model HMR2.0-H',
    'VMPose-T-S2+lift': 'expect bodies as good as the keypoints (--model pose shows them); better: '
    '--model ViTPose-B+lift',
}


def releases(pattern: str = '*') -> dict[str, Release]:
    """Official files whose names match a shell pattern, in any case."""
    pattern = pattern.lower()
    return {name: row for name, row in RELEASES.items() if fnmatch.fnmatch(name.lower(), pattern)}


def release_of(url: str) -> tuple[str, Release] | None:
    """Name and row of the official file at an address; None: it is none of them."""
    address = url.partition('#')[0]
    return next(((name, row) for name, row in RELEASES.items() if address in row.urls), None)
