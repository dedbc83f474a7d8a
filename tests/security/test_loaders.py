"""Every place that reads a file: nothing that a stranger wrote into it runs.

`READERS` has each file of the package and the tools that calls a function which reads data. One
that is missing fails a test: add it, with the entries below that attack it, or with the reason why
it reads only what this package or its user wrote.
"""

import ast
import contextlib
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
from collections import OrderedDict
from pathlib import Path

import convert_smpl
import make_shards
import numpy as np
import pytest
import run
import split
import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import Runner
from mmengine.runner import checkpoint as of_mmengine
from report import work_dirs
from small_models import ROOT, mesh_config, pose_config

from trunchier.datasets import FeaturePeople, NpzPeople, ShardPeople, mpi_inf_3dhp_sequences
from trunchier.datasets.annotations import load_probable_poses
from trunchier.datasets.heatmaps import HeatmapStore
from trunchier.datasets.transforms import load_real_poses
from trunchier.deploy.runtime import ExportedNetwork
from trunchier.files import pickles, read_npz
from trunchier.inference.detection import GivenBoxes, YoloxDetector
from trunchier.inference.exported import exported_models
from trunchier.inference.pose import PoseInferencer
from trunchier.inference.sources import find, read
from trunchier.models.create import create_backbone, create_model
from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.track import load_track_lifter
from trunchier.models.mesh.body import SHAPES, BodyModel
from trunchier.models.mesh.hmr2_head import MEAN_PARAMS, read_mean_params
from trunchier.models.teachers import read_token
from trunchier.synthetic.keypoints import ERRORS, read_errors
from trunchier.synthetic.noise import read_noise
from trunchier.weights.find import weights_note
from trunchier.weights.inspection import inspect_file
from trunchier.weights.load import load_checkpoint, read_official, read_weights

OWN = 'reads what this package wrote in the same run, or ships'
USER = 'a config of the user, which is Python and is trusted'
PICTURE = 'decodes pictures, see the tests of trunchier/files/images.py'
READERS = {
    'trunchier/annotation/merge.py': OWN,
    'trunchier/annotation/work.py': OWN,
    'trunchier/compat/patches.py': OWN,  # metafiles of models
    'trunchier/compat/stand_ins/xtcocotools/coco.py': 'JSON of annotations, see pycocotools',
    'trunchier/datasets/annotations.py': {'pose histogram'},
    'trunchier/datasets/coco.py': PICTURE,
    'trunchier/datasets/corruption.py': 'decodes the JPEG that it has just encoded',
    'trunchier/datasets/features.py': {'stored features'},
    'trunchier/datasets/heatmaps.py': {'stored heatmaps'},
    'trunchier/datasets/npz.py': {'npz people'},
    'trunchier/datasets/sequences.py': {'sequences'},
    'trunchier/datasets/shard_index.py': {'shards', 'index of shards'},
    'trunchier/datasets/shards.py': {'shards', 'index of shards'},
    'trunchier/datasets/transforms.py': {'real poses'},
    'trunchier/deploy/calibration.py': 'pictures, and JSON of COCO annotations, see tests/deploy',
    'trunchier/deploy/quantize.py': OWN,
    'trunchier/deploy/runtime.py': {'exported network', 'weights of an inferencer'},
    'trunchier/files/arrays.py': {'npz'},
    'trunchier/files/download.py': 'copies one file out of an archive, see tests/files',
    'trunchier/files/images.py': PICTURE,
    'trunchier/files/pickles.py': {'pickle'},
    'trunchier/geometry.py': OWN,
    'trunchier/inference/detection.py': {'boxes', 'yolox'},
    'trunchier/inference/distributed.py': 'headers of a tar, and Parquet, which is data alone',
    'trunchier/inference/exported.py': {'model without torch'},
    'trunchier/inference/windows.py': 'decodes the JPEG that it has just encoded',
    'trunchier/inference/results.py': OWN,
    'trunchier/inference/sources.py': {'sources'},
    'trunchier/inference/writers.py': OWN,
    'trunchier/models/backbones/timm.py': {'weights'},
    'trunchier/models/teachers.py': {'token'},
    'trunchier/models/lifting/body.py': {'lifter', 'lifter of tracks'},
    'trunchier/models/lifting/fit.py': OWN,
    'trunchier/models/mesh/body.py': {'body'},
    'trunchier/models/mesh/hmr2_head.py': {'mean parameters'},
    'trunchier/ops/scan/cuda.py': 'loads of a Triton kernel',
    'trunchier/synthetic/backdrop.py': PICTURE,
    'trunchier/synthetic/coco.py': OWN,
    'trunchier/synthetic/dataset.py': OWN,
    'trunchier/synthetic/figure.py': OWN,
    'trunchier/synthetic/keypoints.py': {'errors of a 2D model'},
    'trunchier/synthetic/kinematics.py': OWN,
    'trunchier/synthetic/noise.py': {'noise of a 2D model'},
    'trunchier/synthetic/people.py': OWN,
    'trunchier/synthetic/poses.py': OWN,
    'trunchier/visualization/viewer.py': OWN,
    'trunchier/weights/checkpoint.py': {'weights'},
    'trunchier/weights/find.py': {'weights of an inferencer', 'note'},
    'trunchier/weights/inspection.py': {'inspect'},
    'trunchier/weights/load.py': {
        *('weights', 'checkpoint', 'official', 'init_cfg OfficialPretrained', 'create_model'),
        *('create_backbone', 'init_cfg Pretrained', 'mmengine', 'load_from', 'resume'),
        'MMPoseInferencer',
    },
    'tools/depth_order.py': 'weights, by the package; the scenes are drawn',
    'tools/benchmark/cold.py': OWN,
    'tools/benchmark/data.py': OWN,
    'tools/build_body.py': 'builds the asset from packages of its own environment',
    'tools/compare.py': OWN,
    'tools/compare_recipes.py': OWN,
    'tools/convert_smpl.py': {'convert_smpl'},
    'tools/demo.py': OWN,
    'tools/demo_video.py': OWN,
    'tools/fit_offsets.py': 'JSON of annotations, see tests/tools',
    'tools/guidance.py': 'weights, by the package',
    'tools/launch.py': USER,
    'tools/make_pose_prior.py': OWN,
    'tools/join_head.py': {'weights'},
    'tools/make_shards.py': {'make_shards'},
    'tools/model_table.py': OWN,
    'tools/report/work_dirs.py': {'scalars of a run', 'dumped config'},
    'tools/run.py': {'script of trunchier run'},
    'tools/split.py': {'split'},
    'tools/store_features.py': USER,
    'tools/store_heatmaps.py': USER,
    'tools/train_heads.py': OWN,
    'tools/test_lifter.py': OWN,
    'tools/train_lifter.py': OWN,
}
# Functions that read data: of an imported name, by the end of their dotted name.
READING = {
    *('load', 'loads', 'fromfile', 'open', 'memmap', 'File', 'load_file', 'safe_open', 'safe_load'),
    *('ZipFile', 'InferenceSession', 'read_array', 'imdecode', 'imread', 'decode_image', 'unpack'),
    *('read_npz', 'read_checkpoint', 'Unpickler', 'local_file', 'read_weights', 'parse'),
}
HARMLESS = {'os', 'ast', 'struct', 'webbrowser'}


def reading_calls(path):
    """Dotted names of the functions that the file calls to read data."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    imported = {(a.asname or a.name).partition('.')[0] for n in imports for a in n.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        first, last = name.partition('.')[0], name.rpartition('.')[2]
        known = first in {*imported, 'onnxruntime', 'safetensors'} - HARMLESS
        if known and last in READING or last.endswith('Unpickler'):
            yield name


def test_every_reader_of_files_is_listed():
    found = {}
    for folder in ('trunchier', 'tools'):
        for path in sorted((ROOT / folder).rglob('*.py')):
            if calls := sorted(set(reading_calls(path))):
                found[str(path.relative_to(ROOT))] = calls
    assert {name: calls for name, calls in found.items() if name not in READERS} == {}
    assert set(READERS) - set(found) == set()


def test_every_entry_is_attacked():
    entries = set().union(*(value for value in READERS.values() if isinstance(value, set)))
    assert entries == set(ENTRIES)


# --- entries: function of a path or address -------------------------------------------------------
class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, *arguments, **options):
        raise NotImplementedError


def with_init_cfg(kind):
    def build(address):
        module = BaseModule(init_cfg=dict(type=kind, checkpoint=str(address)))
        module.layer = torch.nn.Linear(1, 1)
        module.init_weights()

    return build


def runner(resume):
    def run(address):
        Runner(
            Model(),
            'work',
            load_from=str(address),
            resume=resume,
            experiment_name=os.urandom(8).hex(),
        ).load_or_resume()

    return run


def mmpose_inferencer(address):
    from mmpose.apis import MMPoseInferencer

    cfg = pose_config()
    cfg.model.backbone.init_cfg = None
    cfg.dump('small.py')
    MMPoseInferencer(pose2d='small.py', pose2d_weights=str(address), det_model='whole_image')


def body_by_config(path):
    cfg = mesh_config()
    cfg.model.body_model = dict(path=str(path))
    return BodyModel(**cfg.model.body_model)


def smpl(path):
    found = {'body': path, 'joints': path, 'mean': path, 'mocap': path}
    convert_smpl.convert(found, Path('out.npz'))


def stored_heatmaps(path):
    shard = path.with_name('heatmaps-00000.safetensors')
    path.rename(shard)
    HeatmapStore(shard.parent)


def stored_features(path):
    shard = path.with_name('features-00000.safetensors')
    path.rename(shard)
    return FeaturePeople(shard.parent)[0]


def index_of_shards(path):
    whole = Path('whole.tar')
    with tarfile.open(whole, 'w'):
        pass
    dataset = ShardPeople(urls=str(whole))
    target = Path(dataset.index_path(str(whole)))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(path).read_bytes())
    dataset.index(1)


ENTRIES = {
    # Weights, also by address
    'weights': lambda path: read_weights(path),
    'checkpoint': lambda path: load_checkpoint(torch.nn.Linear(1, 1), path),
    'official': lambda path: read_official(path),
    'create_model': lambda path: create_model(pose_config(), weights=path),
    'create_backbone': lambda path: create_backbone('swin-t-s2', weights=path),
    'weights of an inferencer': lambda path: PoseInferencer(pose_config(), weights=path),
    'note': lambda path: weights_note(path),
    'inspect': lambda path: inspect_file(path),
    'init_cfg OfficialPretrained': with_init_cfg('OfficialPretrained'),
    'init_cfg Pretrained': with_init_cfg('Pretrained'),
    'mmengine': lambda path: of_mmengine.load_checkpoint(Model(), str(path)),
    'load_from': runner(resume=False),
    'resume': runner(resume=True),
    'MMPoseInferencer': mmpose_inferencer,
    # Files
    'pickle': lambda path: pickles.load(path),
    'npz': lambda path: read_npz(path),
    'body': body_by_config,
    'token': lambda path: read_token(path),
    'model without torch': lambda path: exported_models([], [path], 'cpu'),
    'split': lambda path: split.main([str(path), '--expert', 'coco']),
    'lifter': lambda path: load_lifter(path),
    'lifter of tracks': lambda path: load_track_lifter(path),
    'errors of a 2D model': lambda path: read_errors(path),
    'noise of a 2D model': lambda path: read_noise(path),
    'mean parameters': lambda path: read_mean_params(path),
    'real poses': lambda path: load_real_poses(path),
    'pose histogram': lambda path: load_probable_poses(path),
    'npz people': lambda path: NpzPeople(ann_file=str(path), img_dir='.').full_init(),
    'sequences': lambda path: mpi_inf_3dhp_sequences(ann_file=str(path), multiple_target=1),
    'shards': lambda path: ShardPeople(urls=str(path)).index(1),
    'index of shards': index_of_shards,
    'stored features': stored_features,
    'stored heatmaps': stored_heatmaps,
    'exported network': lambda path: ExportedNetwork(path),
    'boxes': lambda path: GivenBoxes.of(path),
    'yolox': lambda path: YoloxDetector(path),
    'sources': lambda path: [frame for source in find(path) for frame in read(source)],
    'convert_smpl': smpl,
    'script of trunchier run': lambda path: run.reading_paths_safely(torch.load)(path),
    'make_shards': lambda path: make_shards.main([str(path), '--out', 'shards']),
    'scalars of a run': lambda path: work_dirs.scored(path),
    'dumped config': lambda path: work_dirs.protocol(path),
}
BY_ADDRESS = (
    'checkpoint', 'official', 'create_backbone', 'weights of an inferencer', 'mmengine',
    'load_from',
    'resume', 'init_cfg Pretrained', 'init_cfg OfficialPretrained', 'MMPoseInferencer',
)  # fmt: skip


# --- crafted files --------------------------------------------------------------------------------
class Evil:
    """Unpickled, creates the file `canary`."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), 'w')


def crafted(evil):
    """{suffix: contents of files that run `evil` where they are unpickled}."""
    zipped, legacy, npz, npy, tar = (io.BytesIO() for _ in range(5))
    state = {'state_dict': OrderedDict(weight=torch.ones(1, 1)), 'meta': {'evil': evil}}
    torch.save(state, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    objects = np.array([evil], dtype=object)
    names = {
        *SHAPES,
        *MEAN_PARAMS,
        *ERRORS,
        'body_pose',
        'poses',
        'imgname',
        'center',
        'scale',
        'facts',
    }
    np.savez(npz, **dict.fromkeys(sorted(names), objects))
    np.save(npy, objects)
    with tarfile.open(fileobj=tar, mode='w') as archive:
        for name, data in (('0.data.pyd', pickle.dumps([evil])), ('0.jpg', b''), ('0.pkl', b'')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    contents = [zipped, legacy, npz, npy, tar]
    contents = [*(file.getvalue() for file in contents), pickle.dumps(evil), pickle.dumps(evil, 0)]
    contents.append(json.dumps({'py/reduce': ['os.system', 'touch canary']}).encode())
    return contents


SUFFIXES = ('.pth', '.pt', '.pt2', '.onnx', '.safetensors', '.npz', '.npy', '.pkl', '.tar', '.json')
SLOW = {  # that build a model: suffixes, number of contents
    'MMPoseInferencer': (('.pth',), 2),
    'create_model': (('.pth',), 2),
    'create_backbone': (('.pth', '.safetensors'), 2),
    'load_from': (('.pth', '.safetensors'), 3),
    'resume': (('.pth', '.safetensors'), 3),
    'weights of an inferencer': (SUFFIXES, 2),
    'body': (('.npz', '.npy', '.pkl'), 6),
}
# What an entry may raise at a file that is not what it reads; anything else is a defect.
EXPLAINED = (ValueError, RuntimeError, OSError, ImportError, pickle.UnpicklingError, SystemExit)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # undoes torch's own protection
    return tmp_path


def test_the_crafted_files_do_run_where_they_are_trusted(folder):
    contents = crafted(Evil(folder / 'canary'))
    for number, load in enumerate(
        (
            lambda file: torch.load(file, weights_only=False),
            lambda file: torch.load(file, weights_only=False),
            lambda file: np.load(file, allow_pickle=True)['imgname'],
            lambda file: np.load(file, allow_pickle=True),
        )
    ):
        load(io.BytesIO(contents[number]))
        assert (folder / 'canary').exists(), number
        (folder / 'canary').unlink()


@pytest.mark.parametrize('entry', ENTRIES)
def test_nothing_in_a_file_runs(entry, folder, capsys):
    canary = folder / 'canary'
    suffixes, few = SLOW.get(entry, (SUFFIXES, 99))
    for number, content in enumerate(crafted(Evil(canary))):
        for suffix in suffixes if number < few else ():
            path = folder / f'{number}{suffix}'
            path.write_bytes(content)
            with contextlib.suppress(*EXPLAINED):
                ENTRIES[entry](path)
            assert not canary.exists(), f'{entry} ran content {number} of {path.name}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.contents[int(Path(self.path).stem.rpartition('-')[2])]
        self.send_response(200)
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize('entry', BY_ADDRESS)
def test_nothing_behind_an_address_runs(entry, folder, monkeypatch, online):
    for name in ('TORCH_HOME', 'TRUNCHIER_HOME'):
        monkeypatch.setenv(name, str(folder))
    canary = folder / 'canary'
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.contents = crafted(Evil(canary))[:2]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        for number in range(2):
            with pytest.raises(RuntimeError, match='cannot be read as weights: forbidden class'):
                ENTRIES[entry](f'http://127.0.0.1:{server.server_port}/net-{number}.pth')
            assert not canary.exists()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('scheme', ['pavi', 's3', 'petrel', 'my:s3'])
def test_addresses_that_cannot_be_read_safely_say_what_to_do(scheme):
    with pytest.raises(ValueError, match='download it and give the path'):
        of_mmengine._load_checkpoint(f'{scheme}://bucket/a.pth')


@pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls'])
def test_names_in_the_indices_of_mmengine_are_read_safely(scheme, folder, monkeypatch, online):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.contents = crafted(Evil(folder / 'canary'))[:1]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    index = {'net': f'http://127.0.0.1:{server.server_port}/{scheme}-0.pth'}
    for name in ('TORCH_HOME', 'TRUNCHIER_HOME'):
        monkeypatch.setenv(name, str(folder))
    for name in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(of_mmengine, name, lambda: index)
    try:
        with pytest.raises(RuntimeError, match='cannot be read as weights: forbidden class'):
            of_mmengine._load_checkpoint(f'{scheme}://net')
    finally:
        server.shutdown()
        server.server_close()
    assert not (folder / 'canary').exists()


def test_files_that_mmengine_names_in_its_home_are_read_safely(folder, monkeypatch):
    monkeypatch.setenv('MMENGINE_HOME', str(folder))
    evil, good = crafted(Evil(folder / 'canary'))[0], io.BytesIO()
    torch.save({'weight': torch.ones(2)}, good)
    (folder / 'evil.pth').write_bytes(evil)
    (folder / 'good.pth').write_bytes(good.getvalue())
    (folder / 'open_mmlab.json').write_text('{"evil": "evil.pth", "good": "good.pth"}')
    with pytest.raises(RuntimeError, match='cannot be read as weights: forbidden class'):
        of_mmengine._load_checkpoint('open-mmlab://evil')
    assert not (folder / 'canary').exists()
    assert torch.equal(of_mmengine._load_checkpoint('openmmlab://good')['weight'], torch.ones(2))
    with pytest.raises(ValueError, match='no address of this name; similar: good'):
        of_mmengine._load_checkpoint('open-mmlab://goode')


def test_every_scheme_of_mmengine_is_known_here():
    assert {*of_mmengine.CheckpointLoader._schemes} == {
        *('', 'http://', 'https://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
        *('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://'),
    }
