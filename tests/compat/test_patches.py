"""Each patch mends its symptom, is needed, and leaves alone what is not broken.

What happens at import happens in a process of its own, once without trunchier and once with.
"""

import contextlib
import importlib
import io
import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trunchier.compat import patches

ROOT = Path(__file__).resolve().parents[2]


def python(script, *paths):
    """Run `script` in a fresh interpreter, with `paths` before all others on sys.path."""
    script = f'import sys\nsys.path[:0] = {[str(path) for path in paths]}\n{script}'
    return subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd='/')


# --- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('patch', patches.PATCHES, ids=lambda patch: patch.__name__)
def test_every_patch_states_symptom_upstream_and_condition(patch):
    assert patch.__doc__.splitlines()[0].strip()
    assert 'Upstream: https://github.com/' in patch.__doc__
    assert 'Condition: ' in patch.__doc__
    assert patches.OUTCOMES[patch.__name__].reason


def test_applying_twice_changes_nothing():
    tensor_utils = importlib.import_module('mmpose.utils.tensor_utils')
    before = tensor_utils.to_numpy, list(sys.path), dict(patches.OUTCOMES)
    assert patches.apply() == before[2]
    assert (tensor_utils.to_numpy, sys.path) == before[:2]


# --- mmcv without compiled ops -------------------------------------------------------------------

lite_only = pytest.mark.skipif(
    not patches.OUTCOMES['mmcv_without_compiled_ops'].applied, reason='mmcv has its compiled ops'
)


@lite_only
def test_mmcv_lite_has_no_ops_to_import_without_the_patch():
    assert "No module named 'mmcv._ext'" in python('import mmcv.ops').stderr


@lite_only
def test_mmpose_models_import_on_mmcv_lite_which_is_still_known_and_reported_as_lite():
    run = python(
        'import trunchier, mmpose.models\n'
        'from mmengine.utils.dl_utils import mmcv_full_available\n'
        'from mmcv.utils.env import collect_env\n'
        'print(mmcv_full_available(), collect_env()["MMCV Compiler"])'
    )
    assert run.stdout == 'False n/a\n', run.stderr


@lite_only
def test_calling_an_absent_op_names_it():
    from mmcv.ops import nms

    assert '\n### The full mmcv\n' in (ROOT / 'docs' / 'openmmlab.md').read_text()
    with pytest.raises(RuntimeError, match=r"compiled op 'nms' .* mmcv-lite.*The full mmcv"):
        nms(torch.rand(4, 4), torch.rand(4), 0.5)


@lite_only
@pytest.mark.slow
def test_mmdet_can_be_imported_after_mmpretrain_and_this_package():
    run = python('import mmpretrain.models, trunchier, mmdet.models\nprint("imported")')
    assert run.stdout == 'imported\n', run.stderr


def test_full_mmcv_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / '_ext.cpython-311-x86_64-linux-gnu.so').touch()
    spec = SimpleNamespace(origin=str(tmp_path / '__init__.py'))
    monkeypatch.setattr(patches, 'find_spec', lambda name: spec)
    monkeypatch.setattr(patches, '_when_imported', None)
    assert not patches.mmcv_without_compiled_ops().applied


# --- xtcocotools over pycocotools ----------------------------------------------------------------

PARTS = {
    'keypoints': 17,
    'foot_kpts': 6,
    'face_kpts': 68,
    'lefthand_kpts': 21,
    'righthand_kpts': 21,
}
KINDS = {'': 17, 'body': 17, 'crowd': 17, 'foot': 6, 'face': 68, 'lefthand': 21, 'wholebody': 133}


def people(seed, images=20):
    """Annotations and results with crowds, absent joints, ties of score, id 0, small and large."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            x, y, w, h = *rng.uniform(0, 300, 2), *rng.uniform(10, 300, 2)
            person = dict(id=len(annotations), image_id=image, category_id=1, bbox=[x, y, w, h])
            person['area'] = w * h * rng.uniform(0.2, 0.9)
            if rng.random() < 0.8:
                person['iscrowd'] = int(rng.random() < 0.15)
            for part, joints in PARTS.items():
                seen = rng.integers(0, 3, joints) * (rng.random() > 0.15)
                places = [x, y] + rng.uniform(0, 1, (joints, 2)) * [w, h]
                person[part] = np.c_[places.round() * (seen > 0)[:, None], seen].ravel().tolist()
            person['num_keypoints'] = sum(value > 1 for value in person['keypoints'][2::3])
            annotations.append(person)
            for _ in range(rng.integers(0, 4)):
                result = dict(image_id=image, category_id=1, score=round(rng.random(), 1))
                spread = rng.choice([0.005, 0.02, 0.1]) * np.sqrt(w * h)
                for part, joints in PARTS.items():
                    places = np.reshape(person[part], (-1, 3))[:, :2]
                    places = places + rng.normal(0, spread, (joints, 2))
                    score = rng.random(joints) * (rng.random() > 0.05)
                    result[part] = np.c_[places, score].ravel().tolist()
                if rng.random() < 0.5:
                    result['face_score'] = rng.random()
                results.append(result)
    names = dict(width=640, height=480)
    images = [dict(names, id=image, crowdIndex=rng.random()) for image in range(images)]
    categories = [dict(id=1, name='person')]
    return dict(images=images, annotations=annotations, categories=categories), results


def evaluate(packages, folder, seed, kind, use_area, results=None):
    """Precision at every threshold, and the summary, of `people(seed)` by `packages`' COCOeval."""
    coco, cocoeval = packages
    annotations, made = people(seed)
    for name, content in (
        ('annotations', annotations),
        ('results', made if results is None else results),
    ):
        (folder / f'{name}.json').write_text(json.dumps(content))
    sigmas = np.linspace(0.02, 0.1, KINDS[kind], dtype=np.float32)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # xtcocotools: no score of its own for a part
        truth = coco.COCO(str(folder / 'annotations.json'))
        found = truth.loadRes(str(folder / 'results.json'))
        name = f'keypoints_{kind}' if kind else 'keypoints'
        evaluation = cocoeval.COCOeval(truth, found, name, sigmas, use_area)
        evaluation.params.useSegm = None  # as mmpose does
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval['precision']
        evaluation.summarize()
    return precision, np.array(evaluation.stats)


def packages(*parents):
    """The modules (coco, cocoeval) of the xtcocotools that is found with `parents` in front."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, 'path', [*map(str, parents), *sys.path])
        for name in imported_from('xtcocotools'):
            patched.delitem(sys.modules, name)
        modules = [importlib.import_module(f'xtcocotools.{name}') for name in ('coco', 'cocoeval')]
        for name in imported_from('xtcocotools'):
            del sys.modules[name]
    return modules


def imported_from(package):
    return [name for name in sys.modules if name.partition('.')[0] == package]


@pytest.fixture(scope='module')
def stand_in():
    return packages(patches.STAND_INS)


@pytest.fixture(scope='module')
def original():
    if patches.OUTCOMES['xtcocotools_over_pycocotools'].applied:
        pytest.skip('xtcocotools cannot be imported here; the numbers below are what it gave')
    modules = packages()
    assert str(patches.STAND_INS) not in modules[0].__file__
    return modules


@pytest.mark.parametrize('use_area', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_the_stand_in_evaluates_as_xtcocotools_to_the_last_digit(
    original, stand_in, tmp_path, kind, use_area
):
    for seed in range(3):
        wanted, summary = evaluate(original, tmp_path, seed, kind, use_area)
        found, our_summary = evaluate(stand_in, tmp_path, seed, kind, use_area)
        assert (found == wanted).all()
        assert our_summary.tolist() == summary.tolist()


def test_the_stand_in_takes_no_results_at_all_as_xtcocotools_does(original, stand_in, tmp_path):
    wanted, summary = evaluate(original, tmp_path, 0, '', True, results=[])
    found, our_summary = evaluate(stand_in, tmp_path, 0, '', True, results=[])
    assert (found == wanted).all()
    assert our_summary.tolist() == summary.tolist()


# By xtcocotools 1.14.3 on numpy 1.26.
SUMMARIES = {
    (0, '', True): [
        0.39698174392014945, 0.46715298312719067, 0.44610741833173584, 0.693069306930693,
        0.3360112502513286, 0.6511627906976745, 0.7209302325581395, 0.6976744186046512,
        0.6954545454545455, 0.595,
    ],
    (1, '', False): [
        0.34991029794776435, 0.3756175377657706, 0.37433465085639, 0.6247524752475248,
        0.3842319231923192, 0.5703703703703703, 0.5925925925925926, 0.5925925925925926,
        0.6272727272727273, 0.5666666666666667,
    ],
    (2, 'crowd', True): [
        0.25193253345929906, 0.278240388770025, 0.2739374464244409, 0.5757575757575757,
        0.6060606060606061, 0.6060606060606061, 0.3685, 0.221, 0.4873,
    ],
    (3, 'wholebody', True): [
        0.5837119113315087, 0.6426716684826378, 0.5980028634731606, 0.6109136078443008,
        0.5828741298499598, 0.7666666666666668, 0.8, 0.7666666666666667, 0.6923076923076923,
        0.8125,
    ],
}  # fmt: skip


@pytest.mark.parametrize('case', SUMMARIES, ids=str)
def test_the_stand_in_gives_the_numbers_of_xtcocotools_where_that_cannot_run(
    stand_in, tmp_path, case
):
    assert evaluate(stand_in, tmp_path, *case)[1].tolist() == SUMMARIES[case]


def test_a_perfect_result_scores_one_and_a_far_one_nothing(stand_in, tmp_path):
    annotations, _ = people(0)
    for moved, wanted in ((0, 1.0), (1e4, 0.0)):
        results = [
            dict(
                image_id=person['image_id'],
                category_id=1,
                score=1.0,
                keypoints=[
                    value if index % 3 == 2 else value + moved
                    for index, value in enumerate(person['keypoints'])
                ],
            )
            for person in annotations['annotations']
        ]
        assert evaluate(stand_in, tmp_path, 0, '', True, results)[1][0] == wanted


def test_what_the_stand_in_does_not_evaluate_it_refuses(stand_in):
    for kind in ('bbox', 'keypoints_nose'):
        with pytest.raises(ValueError, match=f"{kind}' is not supported; expected 'keypoints'"):
            stand_in[1].COCOeval(iouType=kind)


def test_masks_are_those_of_pycocotools():
    run = python(
        'import numpy as np, xtcocotools.mask as mask\n'
        'runs = mask.frPyObjects([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)\n'
        'print(mask.__file__, mask.decode(mask.merge(runs)).sum())',
        patches.STAND_INS,
    )
    assert 'stand_ins' in run.stdout
    assert run.stdout.endswith(' 6\n'), run.stderr


def test_mmpose_datasets_import_where_xtcocotools_is_broken_as_by_numpy_2(tmp_path):
    broken = tmp_path / 'xtcocotools'
    broken.mkdir()
    (broken / '__init__.py').touch()
    (broken / '_mask.py').write_text("raise ValueError('numpy.dtype size changed')")
    for name in ('mask', 'coco', 'cocoeval'):
        (broken / f'{name}.py').write_text('import xtcocotools._mask')
    run = python(
        'try:\n'
        '    import xtcocotools.coco\n'
        'except ValueError as error:\n'
        '    print(error)\n'
        'import trunchier, mmpose.datasets, mmpose.evaluation\n'
        'print(mmpose.datasets.datasets.base.base_coco_style_dataset.COCO.__module__)\n'
        "print(trunchier.compat.patches.OUTCOMES['xtcocotools_over_pycocotools'])\n"
        'print(sys.modules["xtcocotools.coco"].__file__)',
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    first, _, outcome, file = run.stdout.splitlines()
    assert first == 'numpy.dtype size changed'
    assert outcome == "Outcome(applied=True, reason='ValueError: numpy.dtype size changed')"
    assert file == str(patches.STAND_INS / 'xtcocotools' / 'coco.py')


def test_an_xtcocotools_that_works_is_left_alone(original, monkeypatch):
    monkeypatch.setattr(sys, 'path', tuple(sys.path))
    assert not patches.xtcocotools_over_pycocotools().applied


# --- bfloat16 ------------------------------------------------------------------------------------


def test_bfloat16_outputs_become_numpy_arrays():
    to_numpy = importlib.import_module('mmpose.utils.tensor_utils').to_numpy
    half = torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16)
    with pytest.raises(TypeError, match='BFloat16'):
        to_numpy.__wrapped__(half)
    assert to_numpy(half).tolist() == [[0.5, 2.0]]
    first, second = to_numpy([half, half.double()])
    assert (first.dtype, second.dtype) == (np.float32, np.float64)
    (pair,) = to_numpy([half, half], unzip=True)
    assert [array.tolist() for array in pair] == [[[0.5, 2.0]]] * 2


def test_heads_imported_before_the_patch_get_it_too():
    heads = importlib.import_module('mmpose.models.heads.heatmap_heads.heatmap_head')
    tensor_utils = importlib.import_module('mmpose.utils.tensor_utils')
    patched = tensor_utils.to_numpy
    stock = patched.__wrapped__
    tensor_utils.to_numpy = heads.to_numpy = stock  # as if this package had not been imported
    try:
        patches._widen_bfloat16(tensor_utils)
        assert heads.to_numpy(torch.ones(1, dtype=torch.bfloat16)).tolist() == [1.0]
    finally:
        tensor_utils.to_numpy = heads.to_numpy = patched


# --- drawing -------------------------------------------------------------------------------------


def test_a_joint_is_drawn_whether_its_radius_is_a_number_or_an_array():
    module = importlib.import_module('mmpose.visualization.opencv_backend_visualizer')
    if not patches.OUTCOMES['drawing_with_array_radius'].applied:
        patches._draw_with_scalar_radius(module)  # what newer numpy needs, older stands as well
    visualizer = module.OpencvBackendVisualizer(backend='opencv')
    for radius in (3, np.array([3])):
        visualizer.set_image(np.zeros((9, 9, 3), np.uint8))
        visualizer.draw_circles(np.array([4.0, 4.0]), radius, (255, 0, 0))
        assert visualizer.get_image()[4, 1:8, 0].tolist() == [255] * 7
    if patches.OUTCOMES['drawing_with_array_radius'].applied:
        with pytest.raises(TypeError, match='0-dimensional'):
            visualizer.draw_circles.__wrapped__(visualizer, [4, 4], np.array([3]), (255, 0, 0))


# --- mending at import ---------------------------------------------------------------------------


def test_a_module_is_mended_when_it_is_imported_and_not_before(tmp_path, monkeypatch):
    (tmp_path / 'parent').mkdir()
    (tmp_path / 'parent/__init__.py').touch()
    (tmp_path / 'parent/child.py').write_text('value = 1')
    (tmp_path / 'parent/user.py').write_text('from parent.child import value')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    for name in ('parent', 'parent.child', 'parent.user'):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def mend(module):
        module.value += 1

    finders = list(sys.meta_path)
    patches._when_imported('parent.child', mend)
    assert 'parent' not in sys.modules
    assert importlib.import_module('parent.user').value == 2
    patches._when_imported('parent.child', mend)
    assert sys.modules['parent.child'].value == 3
    assert sys.meta_path == finders
    patches._when_imported('parent.absent', mend)
    with pytest.raises(ModuleNotFoundError, match="No module named 'parent.absent'"):
        importlib.import_module('parent.absent')


# --- pkg_resources -------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec('pkg_resources') is None, reason='setuptools has no pkg_resources')
def test_the_warning_about_pkg_resources_is_silenced_and_no_other():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter('always')
        module = importlib.import_module('pkg_resources')
        importlib.reload(module)
        if not any('pkg_resources is deprecated' in str(w.message) for w in caught):
            pytest.skip('this setuptools does not warn')
        caught.clear()
        assert patches.pkg_resources_warning().applied
        importlib.reload(module)
        warnings.warn('something else', UserWarning, stacklevel=1)
    assert not any('pkg_resources is deprecated' in str(w.message) for w in caught)
    assert any('something else' in str(w.message) for w in caught)
