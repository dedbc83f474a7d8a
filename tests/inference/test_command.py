"""The command does what its help says, and its exit code reports the result."""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_models import mesh_config, noise, pose_config, write_clip, write_weights

from trunchier.deploy import export
from trunchier.deploy.graph import describe
from trunchier.files import shipped
from trunchier.inference import command, predictor, runtimes, sources
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.runtimes import runtime_for
from trunchier.models.create import build_model
from trunchier.weights.find import find
from trunchier.weights.load import load_checkpoint


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Arguments that name small models: config and weights."""
    folder = tmp_path_factory.mktemp('models')
    for task, config in (('pose', pose_config), ('mesh', mesh_config)):
        cfg = config()
        cfg.dump(folder / f'{task}_model.py')
        write_weights(cfg, folder / f'{task}.pth')
    return folder


def arguments(models, *tasks):
    return [
        '--device', 'cpu', '--model', *(str(models / f'{task}_model.py') for task in tasks),
        '--weights', *(str(models / f'{task}.pth') for task in tasks),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'photos').mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / 'photos' / f'{i}.png'), noise(60, 80, seed=i))
    return tmp_path


def people_in(path):
    """Of an image; of a video its frames."""
    return json.loads(path.read_text())['instance_info']


def run(*given):
    return command.main([str(each) for each in given])


def test_images_are_predicted_drawn_and_saved(models, folder, capsys):
    code = run(folder / 'photos', '--out-dir', folder / 'out', *arguments(models, 'pose'))
    printed = capsys.readouterr()
    assert code == 0 and printed.out == ''
    for i in range(3):
        (person,) = people_in(folder / f'out/predictions/{i}.json')
        assert len(person['keypoints']) == 17 and person['bbox'] == [[0, 0, 80, 60]]
        assert cv2.imread(str(folder / f'out/visualizations/{i}.jpg')).shape == (60, 80, 3)
    told, written = printed.err.strip().splitlines()[-2:]
    assert told.startswith('3 people in 3 images, ') and told.endswith('images per second)')
    assert written == (
        f'written: {folder}/out/predictions (3 files), {folder}/out/visualizations (3 files)'
    )
    assert 'busy time' not in printed.err  # a line for developers
    assert '\r' not in printed.err and '━' not in printed.err  # no bar into a pipe


def test_folders_are_listed_once(models, folder, monkeypatch):
    listed, iterdir = [], Path.iterdir

    def counted(path):
        listed.append(path)
        return iterdir(path)

    monkeypatch.setattr(Path, 'iterdir', counted)
    assert run(folder / 'photos', '--out-dir', folder, *arguments(models, 'pose')) == 0
    assert listed.count(folder / 'photos') == 1


def test_quiet_is_quiet(models, folder, capfd):
    code = run(folder / 'photos', '--out-dir', folder, '--quiet', *arguments(models, 'pose'))
    assert code == 0 and capfd.readouterr() == ('', '')


def test_all_formats_of_a_mesh_model(models, folder):
    write_clip(folder / 'clip.mp4', frames=3)
    code = run(
        folder / 'photos/0.png', folder / 'clip.mp4', '--out-dir', folder / 'out', '--save',
        'json,npz,obj,glb,animation,bvh,video,images', '--style', 'both', '--side',
        *arguments(models, 'mesh'),
    )  # fmt: skip
    found = {str(p.relative_to(folder / 'out')) for p in (folder / 'out').rglob('*.*')}
    assert code == 0
    assert found == {
        'run.json', 'predictions/0.json', 'predictions/0.npz', 'visualizations/0.jpg',
        'meshes/0.glb', 'meshes/0_0.obj', 'predictions/clip.json', 'predictions/clip.npz',
        'visualizations/clip.mp4', *(f'meshes/clip/{i:06d}.glb' for i in range(3)),
        *(f'meshes/clip/{i:06d}_0.obj' for i in range(3)),
        'meshes/clip.glb', 'meshes/clip_0_from0.bvh',
    }  # fmt: skip


def test_a_sheet_shows_models_side_by_side(models, folder):
    code = run(
        folder / 'photos', '--sheet', folder / 'sheet.png', *arguments(models, 'pose', 'mesh')
    )
    sheet = cv2.imread(str(folder / 'sheet.png'))
    assert code == 0
    assert sheet.shape == (32 + 8 + 3 * (256 + 8), 8 + 3 * (341 + 8), 3)  # input and two models
    photo = cv2.resize(noise(60, 80, seed=2), (341, 256))
    shown = sheet[40 + 2 * 264 : 40 + 2 * 264 + 256, 8:349]
    assert np.abs(shown.astype(int) - photo).mean() < 1
    assert [p.name for p in folder.iterdir() if p.name not in ('photos', 'sheet.png')] == []


def test_several_models_keep_their_files_apart(models, folder):
    code = run(
        folder / 'photos/0.png', '--out-dir', folder / 'out', '--save', 'json',
        *arguments(models, 'pose', 'mesh'),
    )  # fmt: skip
    assert code == 0
    for name, joints in (('pose_model', 17), ('mesh_model', 44)):
        (person,) = people_in(folder / f'out/{name}/predictions/0.json')
        assert len(person['keypoints']) == joints


def test_checkpoints_of_one_model_do_not_overwrite_each_other(models, folder, capsys):
    other = find(str(models / 'pose_model.py')).cfg
    write_weights(other, folder / 'other.pth')
    weights = torch.load(folder / 'other.pth')
    bias = next(name for name in weights['state_dict'] if name.endswith('final_layer.bias'))
    weights['state_dict'][bias] += torch.arange(17.0)
    torch.save(weights, folder / 'other.pth')
    config, first = str(models / 'pose_model.py'), models / 'pose.pth'
    code = run(
        folder / 'photos/0.png', '--out-dir', folder / 'out', '--save', 'json', '--sheet',
        folder / 'sheet.png', '--json', folder / 'lines.json', '--device', 'cpu',
        '--model', config, config, '--weights', first, folder / 'other.pth',
    )  # fmt: skip
    assert code == 0
    names = 'pose_model_pose', 'pose_model_other'
    assert {path.name for path in (folder / 'out').iterdir()} == set(names)
    for name, file in zip(names, ('pose.pth', 'other.pth'), strict=True):
        settings = json.loads((folder / 'out' / name / 'run.json').read_text())
        assert settings['weights'][0] == file
    lines = [json.loads(line) for line in (folder / 'lines.json').read_text().splitlines()]
    assert [line['model'] for line in lines] == [*names]
    sheet = cv2.imread(str(folder / 'sheet.png'))
    one, two = (sheet[40:296, left : left + 341] for left in (8 + 349, 8 + 2 * 349))
    assert (one != two).any()  # the drawings of both


def test_names_of_models_are_unique():
    given = [('a', 'x/1.pth'), ('a', 'y/1.pth'), ('b', '1.pth'), ('a_1', 'z.pth')]
    names = command.unique_names([(name, Path(path)) for name, path in given])
    assert names == ['a_1_2', 'a_1_3', 'b', 'a_1']


def test_boxes_come_from_a_file(models, folder):
    boxes = {'0.png': [[1, 2, 30, 40], [20, 5, 70, 55]], '2.png': []}
    (folder / 'boxes.json').write_text(json.dumps(boxes))
    code = run(
        folder / 'photos', '--boxes', folder / 'boxes.json', '--out-dir', folder,
        *arguments(models, 'pose'),
    )  # fmt: skip
    people = [people_in(folder / f'predictions/{i}.json') for i in range(3)]
    assert code == 0 and [len(each) for each in people] == [2, 0, 0]
    assert people[0][1]['bbox'] == [[20, 5, 70, 55]]


def test_people_are_found_by_a_detector_of_the_cache(models, shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRUNCHIER_HOME', str(shared / 'data/detector'))
    code = run(
        shared / 'data/coco_tiny/000000000785.jpg', '--out-dir', tmp_path,
        '--save', 'json', *arguments(models, 'pose'),
    )  # fmt: skip
    assert code == 0 and len(people_in(tmp_path / 'predictions/000000000785.json')) == 1
    printed = capsys.readouterr().err.splitlines()
    assert 'pose_model: weights' in printed[0] and 'yolox_nano.onnx' in printed[2]


def test_without_a_detector_one_line_says_what_that_means(models, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run('photos/0.png', *arguments(models, 'pose')) == 0
    printed = capsys.readouterr().err
    (line,) = (each for each in printed.splitlines() if 'ONE person' in each)
    assert 'trunchier download yolox-nano' in line and '--boxes FILE' in line
    assert len(people_in(folder / 'outputs/predictions/0.json')) == 1
    (folder / 'boxes.json').write_text('[[1, 2, 30, 40]]')
    run('photos/0.png', '--boxes', 'boxes.json', *arguments(models, 'pose'))
    assert 'ONE person' not in capsys.readouterr().err


def test_each_run_gets_a_folder_of_its_own_unless_one_is_named(models, folder, monkeypatch):
    monkeypatch.chdir(folder)
    given = ['photos', '--save', 'json', *arguments(models, 'pose')]
    for name in ('outputs', 'outputs2', 'outputs3'):
        assert run(*given) == 0
        assert len(list((folder / name / 'predictions').iterdir())) == 3
    (folder / 'outputs3/predictions/1.json').unlink()
    assert run(*given, '--resume') == 0
    assert len(list((folder / 'outputs3/predictions').iterdir())) == 3
    assert not (folder / 'outputs4').exists()


def test_a_file_that_is_given_twice_is_predicted_once(models, folder, capsys):
    given = ['photos/../photos/1.png', 'photos']
    given = [folder / each for each in given]
    assert run(*given, '--out-dir', folder, '--save', 'json', *arguments(models, 'pose')) == 0
    assert len(list((folder / 'predictions').iterdir())) == 3
    assert 'photos/1.png is given twice; it is predicted once' in capsys.readouterr().err


@pytest.mark.parametrize('task', ['pose', 'mesh'])
def test_json_lines_for_pipes(models, folder, monkeypatch, capsys, task):
    monkeypatch.chdir(folder)
    write_clip(folder / 'clip.mp4', frames=5)
    given = ['photos/0.png', 'clip.mp4', '--frames', '1:5:2', '--json', '-']
    code = run(*given, *arguments(models, task))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0 and not (folder / 'outputs').exists()
    assert [(each['meta_info']['source'], each['frame_id'], each['time']) for each in lines] == [
        ('photos/0.png', 0, None), ('clip.mp4', 1, 0.1), ('clip.mp4', 3, 0.3),
    ]  # fmt: skip
    for each in lines:
        meta, (person,) = each['meta_info'], each['instances']
        assert meta['image_size'] == ([80, 60] if each['time'] is None else [128, 96])
        assert len(meta['keypoint_names']) == len(person['keypoints'])
        assert ('focal_length' in meta) == ('transl' in person) == (task == 'mesh')
        assert ('keypoint_scores' in person) == (task == 'pose')


def test_a_reader_that_has_enough_ends_the_command(models, folder):
    read, write = os.pipe()
    os.close(read)
    with open(write, 'w') as closed, contextlib.redirect_stdout(closed):
        assert run(folder / 'photos', '--json', '-', *arguments(models, 'pose')) == 1


def test_yolox_finds_the_people_of_a_photo(models, shared, tmp_path):
    code = run(
        shared / 'data/photos/000000000785.jpg', '--detector',
        shared / 'data/detector/yolox_nano.onnx', '--out-dir', tmp_path, *arguments(models, 'pose'),
    )  # fmt: skip
    (person,) = people_in(tmp_path / 'predictions/000000000785.json')
    assert code == 0 and person['bbox_score'] > 0.8


def test_exported_files_of_torch_need_trust(models, folder, capsys):
    found = find(str(models / 'pose_model.py'), models / 'pose.pth')
    network = build_model(found.cfg)
    load_checkpoint(network, found.weights)
    export.write(network, folder / 'pose.pt', describe(found))
    given = [folder / 'photos/0.png', '--out-dir', folder / 'out', '--device', 'cpu']
    given += ['--model', models / 'pose_model.py', '--weights', folder / 'pose.pt']
    assert run(*given) == command.EXIT_ERROR
    assert 'is a program of torch' in capsys.readouterr().err
    assert not (folder / 'out').exists()
    assert run(*given, '--trust') == 0
    assert (folder / 'out/predictions/0.json').exists()


# --- exit codes -----------------------------------------------------------------------------------
def test_skipped_input_is_reported_and_the_rest_is_done(models, folder, capsys):
    (folder / 'photos/1.png').write_bytes(b'broken')
    code = run(folder / 'photos', '--out-dir', folder, *arguments(models, 'pose'))
    assert code == command.EXIT_SKIPPED
    told = capsys.readouterr().err
    assert '; 1 skipped\n' in told and told.count('1.png') == 1  # once
    assert len(list((folder / 'predictions').iterdir())) == 2


@pytest.mark.parametrize(
    'given, says',
    [
        (['nowhere.jpg'], 'no file nowhere.jpg'),
        (['photos/*.tiff'], 'no file matches'),
        (['photos', '--model', 'VMPose-T-S9'], 'did you mean VMPose-T-S'),
        (['photos', '--model', 'VMPose-T-S2'], 'no weights of VMPose-T-S2'),
        (['photos', '--model', 'pose'], 'no pose model ships with weights'),
        (['photos', '--model', 'a', 'b', '--weights', 'c'], '2 models and 1 weights'),
        (['photos', '--model', 'nowhere.py'], 'no config nowhere.py'),
        (['photos', '--weights', 'nowhere.pth', '--model', 'VMPose-T-S2'], 'nowhere.pth'),
        (['photos', '--save', 'glb', 'POSE'], 'obj, glb, animation, bvh require a mesh model'),
        (['photos', '--boxes', 'nowhere.json', 'POSE'], 'no file nowhere.json'),
        (['photos', '--out-dir', 'file/x', 'POSE'], 'nothing can be written to'),
        (['photos', '--boxes', 'others.json', 'POSE'], "images ('x.jpg'...), not of photos/0.png"),
        (['photos', '--focal', '500', 'POSE'], '--focal: not of pose_model'),
        (['photos', '--no-causal', 'POSE'], '--no-causal: not of pose_model'),
        (['clip.mp4', '--smooth', '--no-track', 'POSE'], 'smoothed along tracks'),
        (['photos', '--sheet', 'sheet.doc', 'POSE'], 'OpenCV writes no .doc images'),
        (['photos', '--detector', 'none.onnx', 'POSE'], 'no file none.onnx'),
        (['camera:63', 'POSE'], 'nothing could be predicted'),
        (['broken.png', 'POSE'], 'nothing could be predicted'),
        (['photos', '--show', 'POSE'], 'requires a display'),
    ],
)
def test_errors_are_one_line(given, says, models, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    monkeypatch.setattr(shipped, 'asset', lambda name: folder / name)
    write_clip(folder / 'clip.mp4', frames=2)
    (folder / 'file').touch()
    (folder / 'broken.png').write_bytes(b'broken')
    (folder / 'others.json').write_text('{"x.jpg": [[1, 2, 30, 40]]}')
    loaded = []
    counted = lambda cfg: loaded.append(cfg) or build_model(cfg)  # noqa: E731
    monkeypatch.setattr(predictor, 'build_model', counted)
    if 'POSE' in given:
        given = [*given[: given.index('POSE')], *arguments(models, 'pose')]
    assert run(*given) == command.EXIT_ERROR
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('error: ') and says in last
    if 'nothing could' not in says:
        assert loaded == [] and not (folder / 'outputs').exists()


def test_an_explicit_no_reaches_the_model(models, folder, monkeypatch):
    taken = []

    class Recorded(Inferencer):
        def __init__(self, *args, **options):
            taken.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr('trunchier.inference.inferencer.Inferencer', Recorded)
    given = folder / 'photos/0.png', '--out-dir', folder / 'out', '--device', 'cpu'
    given += '--weights', models / 'pose.pth', '--model', models / 'pose_model.py'
    assert run(*given, '--no-flip-test') == 0 and run(*given) == 0
    assert taken[0]['flip_test'] is False and 'flip_test' not in taken[1]


def test_a_wrong_command_line_is_an_error(capsys):
    for given in ([], ['a.jpg', '--save', 'png'], ['a.jpg', '--precision', 'fp8']):
        with pytest.raises(SystemExit) as error:
            run(*given)
        assert error.value.code == 2
    assert 'invalid choice' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('package', 'given', 'remedy'),
    [
        ('safetensors', ['photos'], 'pip install safetensors'),
        ('av', ['clip.mp4', 'pose'], "pip install 'trunchier[video]'"),
        ('trimesh', ['photos', 'mesh', '--save', 'glb'], "pip install 'trunchier[mesh]'"),
        ('numba', ['photos', 'mesh', '--save', 'images'], 'pip install numba'),
    ],
)
def test_an_absent_package_is_an_error_with_its_remedy(
    models, folder, monkeypatch, capsys, package, given, remedy
):
    write_clip(folder / 'clip.mp4')
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(folder)
    source, *task_and_more = given
    model = arguments(models, task_and_more[0]) if task_and_more else []
    options = [*task_and_more[1:], *model, '--detector', 'whole_image', '--out-dir', 'out']
    assert run(source, *options) == 1
    (line,) = re.findall('^error: .*', capsys.readouterr().err, re.M)
    assert line.endswith(f' needs {package}: {remedy}')


def test_help_shows_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as error:
        run('--help')
    text = capsys.readouterr().out
    assert error.value.code == 0 and 'examples:' in text and 'exit codes:' in text


def test_another_runtime_is_taken_where_there_are_many_frames(monkeypatch):
    def photos(number):
        return [sources.Source(str(index), 'image') for index in range(number)]

    clip = sources.Source('clip', 'video', content=np.zeros((500, 2, 2, 3), np.uint8))
    monkeypatch.setattr(runtimes.importlib.util, 'find_spec', lambda name: None)
    assert runtime_for(photos(99), None) is None
    assert runtime_for([clip], range(0, 300, 4)) is None
    assert runtime_for([clip], range(0, 600, 2)) == 'measured'
    assert runtime_for([sources.Source('camera', 'camera')], None) == 'measured'
    assert runtime_for(photos(20_000), None) == 'measured'
    monkeypatch.setattr(runtimes.importlib.util, 'find_spec', lambda name: name == 'openvino')
    assert runtime_for(photos(20_000), None) == 'auto'
