"""tools/score_photos.py on annotations drawn here, in the formats of three data sets."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from trunchier.conventions import COCO_17
from trunchier.synthetic.people import SyntheticPeople

pytest.importorskip('mmpose')
import score_photos  # noqa: E402

BOX = [20.0, 10.0, 50.0, 100.0]  # xywh


def write(folder, people, names=COCO_17):
    """COCO's format: [(keypoints (K, 3), box)] in one image."""
    cv2.imwrite(str(folder / '1.png'), np.zeros((140, 120, 3), np.uint8))
    rows = [
        dict(
            id=i, image_id=1, category_id=1, iscrowd=0, bbox=box, area=box[2] * box[3],
            keypoints=np.asarray(points).ravel().tolist(),
            num_keypoints=int((np.asarray(points)[:, 2] > 0).sum()),
        )
        for i, (points, box) in enumerate(people)
    ]  # fmt: skip
    file = folder / 'people.json'
    images = [dict(id=1, file_name='1.png', width=120, height=140)]
    kinds = [dict(id=1, name='person', keypoints=list(names), skeleton=[])]
    file.write_text(json.dumps(dict(images=images, annotations=rows, categories=kinds)))
    return file


def points(labeled, names=COCO_17):
    """(K, 3): in the middle of BOX, those in `labeled` are visible."""
    return [(45, 60, 2) if name in labeled else (0, 0, 0) for name in names]


@pytest.fixture
def off(monkeypatch):
    """Predictions that are 7 px off, of COCO's wrists 4 px."""

    class Fake:
        name = 'fake'

        def __init__(self, *args, **kwargs):
            pass

        def __call__(self, path, bboxes):
            assert len(bboxes) == 1
            found = np.full((1, 17, 2), (45 + 7, 60))
            found[0, [COCO_17.index('left_wrist'), COCO_17.index('right_wrist')]] = (45, 56)
            yield SimpleNamespace(pred_instances=SimpleNamespace(keypoints=found))

    monkeypatch.setattr(score_photos, 'PoseInferencer', Fake)


def table(capsys):
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in line.strip('| ').split('|')] for line in lines]


def test_keypoints_within_a_share_of_the_box_are_found(tmp_path, off, capsys):
    seen = 'nose', 'left_knee', 'left_wrist', 'right_wrist'
    file = write(tmp_path, [(points(seen), BOX), (points(('nose',)), [0, 0, 60, 60])])
    score_photos.main(['pose', '--people', f'coco={file}:{tmp_path}'])
    _, row = table(capsys)
    assert row[1] == '2'
    assert row[2].startswith('80.0 ')  # 7 px are more than a tenth of the second person's box
    assert row[3].startswith('40.0 ')


def test_all_sets_are_put_together(tmp_path, off, capsys):
    file = write(tmp_path, [(points(('nose',)), BOX)])
    (tmp_path / 'mpii.json').write_text(
        json.dumps(
            [
                dict(
                    image='1.png', center=[45, 60], scale=0.5,
                    joints=[(45, 60)] * 16, joints_vis=[1] * 16,
                )
            ]
        )
    )  # fmt: skip
    sets = f'coco={file}:{tmp_path}', f'mpii={tmp_path / "mpii.json"}:{tmp_path}'
    score_photos.main(['pose', '--people', *sets])
    _, coco, mpii, both = table(capsys)
    assert (coco[1], mpii[1], both[1]) == ('1', '1', '2')
    assert coco[2].startswith('100.0 ') and coco[3].startswith('0.0 ')
    assert mpii[3].startswith('16.7 ')  # the wrists of 12 keypoints that COCO has, too
    assert both[3].startswith('15.4 ')


def test_nobody_labeled_counts_for_nothing(tmp_path, off, capsys):
    file = write(tmp_path, [(points(('nose',)), BOX), (points(()), BOX)])
    score_photos.main(['pose', '--people', f'coco={file}:{tmp_path}'])
    assert table(capsys)[1][1] == '1'


def test_the_packages_model_is_scored(tmp_path, capsys):
    sample = SyntheticPeople(0, 128)[3]
    person = sample['people'][0]
    file = write(tmp_path, [(person['keypoints'], person['bbox'].tolist())])
    cv2.imwrite(str(tmp_path / '1.png'), cv2.cvtColor(sample['image'], cv2.COLOR_RGB2BGR))
    score_photos.main(['VMPose-T-S2', '--people', f'coco={file}:{tmp_path}'])
    head, row = table(capsys)
    assert head[0] == 'VMPose-T-S2 on' and row[1] == '1'
    assert 50 < float(row[2].split()[0]) <= 100


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('people.json', 'expected TYPE=ANNOTATIONS:IMAGES'),
        ('coco=absent.json:.', 'absent.json'),
        ('cocoa={file}:{folder}', "no data set 'cocoa'"),
        ('AnimalKingdomDataset={file}:{folder}', "none of COCO's keypoints"),
    ],
)
def test_sets_that_cannot_be_scored(tmp_path, text, message):
    file = write(tmp_path, [(points(('nose',)), BOX)])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        score_photos.main(['pose', '--people', text.format(file=file, folder=tmp_path)])
