"""One data set of all parts: COCO keypoints, bodies, a contact sheet and a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..conventions import COCO_17, COCO_17_SKELETON, OPENPOSE_25
from ..files import read_npz, save_npz, whole_file
from ..inference.distributed import ROWS
from ..inference.sources import Unreadable, read_image
from ..inference.writers import write_image
from ..visualization.overlays import contact_sheet
from .filters import REASONS, Seen, Thresholds, measures, reasons
from .on_ray import missing_inputs, parts_of_rows
from .report import write_report
from .work import Claims, Workplace, units

DEFAULT = Thresholds()
PER_REASON = 6  # people of each column of the contact sheet
KEPT = 'kept'
LABELED = 2  # COCO's visibility
LINE, POINT = (80, 220, 80), (60, 60, 240)  # BGR


class Person(NamedTuple):
    """A person of a part."""

    file_name: str
    box: np.ndarray  # (4,), xyxy
    points: np.ndarray  # (K, 3): x, y, labeled


@dataclass
class Merged:
    """Summary of a data set.

    Attributes:
        inputs: that were given; images: with people who are kept.
        counts: of people: kept, and dropped by reason.
        missing: (input, why): not annotated yet. unreadable: (input, why).
        files: written.
    """

    inputs: int = 0
    images: int = 0
    counts: Counter = field(default_factory=Counter)
    missing: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        text = f'{self.counts[KEPT]} people in {self.images} images kept of {self.inputs} inputs'
        if dropped := ', '.join(f'{n} {why}' for why, n in self.counts.items() if why != KEPT):
            text += f'; dropped: {dropped}'
        if self.unreadable:
            text += f'; {len(self.unreadable)} inputs with errors'
        return text + (f'; {len(self.missing)} inputs are missing' if self.missing else '')


def merge(work: Workplace, limits: Thresholds = DEFAULT, own_keypoints: bool = False) -> Merged:
    """Write OUT/person_keypoints.json, people.npz (of bodies), sheet.jpg and report.html.

    The order is that of the inputs, whoever annotated them: the same inputs give the same bytes.

    Args:
        own_keypoints: write the teacher's keypoints instead of COCO's 17, taken from it by name.

    Raises:
        ValueError: the teacher lacks some of COCO's keypoints; nobody was found in any image.
    """
    names = work.settings['keypoints']
    chosen = range(len(names)) if own_keypoints else indices_by_name(names, COCO_17)
    merged, seen = Merged(), Seen(limits.duplicate) if limits.duplicate >= 0 else None
    images: dict[str, dict] = {}
    annotations: list[dict] = []
    bodies: dict[str, list] = {}
    values: dict[str, list] = {}
    samples: dict[str, list[Person]] = {KEPT: []}
    for about, arrays in _parts(work, merged):
        if not len(arrays.get('frame', ())):
            continue
        found = measures(arrays, limits)
        for name, column in found.items():
            if name != 'labeled':
                values.setdefault(name, []).append(column)
        for row, why in enumerate(reasons(found, limits)):
            frame = about['frames'][arrays['frame'][row]]
            box = np.float64(arrays['bboxes'][row])
            points = arrays['keypoints'][row]
            pose = (points - box[:2]) / np.maximum(box[2:] - box[:2], 1)
            if why is None and seen and not seen.add(int(arrays['fingerprint'][row]), pose):
                why = 'duplicate'
            merged.counts[why or KEPT] += 1
            some = samples.setdefault(why or KEPT, [])
            if len(some) < PER_REASON:
                labels = np.c_[points, found['labeled'][row]][list(chosen)]
                some.append(Person(frame['file_name'], box, labels))
            if why is not None:
                continue
            image = images.setdefault(
                frame['file_name'],
                dict(id=len(images) + 1) | {n: frame[n] for n in ('file_name', 'width', 'height')},
            )
            person = {name: array[row] for name, array in arrays.items() if name != 'frame'}
            person['labeled'] = found['labeled'][row]
            annotations.append(_annotation(person, image, len(annotations) + 1, chosen))
            if 'body_pose' in person:
                for name, value in _body(person, frame).items():
                    bodies.setdefault(name, []).append(value)
    merged.images = len(images)
    if not merged.counts:
        found_no = 'no person was found in any image' if not merged.missing else 'nothing is done'
        raise ValueError(
            f'{work.out}: {found_no} ({merged.inputs} inputs, {len(merged.missing)} missing, '
            f'{len(merged.unreadable)} unreadable); try another --detector, or a lower --score-thr'
        )
    category = dict(id=1, name='person', supercategory='person')
    category['keypoints'] = [names[index] for index in chosen]
    category['skeleton'] = [] if own_keypoints else [[a + 1, b + 1] for a, b in COCO_17_SKELETON]
    info = dict(description='annotated by trunchier', teacher=work.settings, kept_if=asdict(limits))
    _write(merged, work.out / 'person_keypoints.json', info, images, annotations, category)
    if bodies:
        arrays = {name: np.array(rows) for name, rows in bodies.items()}
        merged.files.append(work.out / 'people.npz')
        save_npz(merged.files[-1], **arrays)
    links = [] if own_keypoints else COCO_17_SKELETON
    sheet = _sheet(work.out, samples, links)
    if sheet is not None:
        merged.files.append(work.out / 'sheet.jpg')
        write_image(sheet, merged.files[-1])
    merged.files.append(work.out / 'report.html')
    columns = {name: np.concatenate(each) for name, each in values.items()}
    write_report(merged.files[-1], merged, columns, limits, work.settings, sheet is not None)
    return merged


def indices_by_name(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where each of `wanted` is among `names`; ValueError if some are missing."""
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(
            f'the teacher has no {", ".join(missing)} among its {len(names)} keypoints: a '
            'student of COCO keypoints cannot learn from it. --own-keypoints writes those that '
            'it has, for a student of the same'
        )
    return [names.index(name) for name in wanted]


def _parts(work, merged) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """What is known of each input, in order; notes what is missing or unreadable."""
    if (work.out / ROWS).is_dir():
        yield from _parts_of_ray(work, merged)
        return
    with Claims(work.claims) as claims:
        for unit in units(work.given(), work.out):
            merged.inputs += 1
            path = work.part(unit)
            if not path.exists():
                holder = claims.holder(unit.key)
                why = f'held by {holder}' if holder else 'not done'
                merged.missing.append((unit.file_name, why))
                continue
            try:
                arrays = read_npz(path)
                about = json.loads(str(arrays.pop('about')))
            except (ValueError, KeyError) as error:
                path.unlink()
                why = f'its part was damaged and is removed: {error}'
                merged.missing.append((unit.file_name, why))
                continue
            merged.unreadable += [(unit.file_name, why) for why in about['errors']]
            yield about, arrays


def _parts_of_ray(work, merged):
    done = set()
    for about, arrays in parts_of_rows(work):
        merged.inputs += 1
        merged.unreadable += [(about['file_name'], why) for why in about['errors']]
        done.add(about['path'])
        yield about, arrays
    merged.missing += [(name, 'not done') for name in missing_inputs(work, done)]
    merged.inputs += len(merged.missing)


def _annotation(person, image, number, chosen) -> dict[str, Any]:
    """An entry of COCO's `annotations`; with scores, which COCO does not have."""
    x1, y1 = np.maximum(person['bboxes'][:2], 0).tolist()
    x2, y2 = np.minimum(person['bboxes'][2:], (image['width'], image['height'])).tolist()
    labeled = person['labeled'][chosen]
    scores = person.get('keypoint_scores', person['agreement'])[chosen]
    points = np.c_[np.round(person['keypoints'][chosen], 2), labeled * LABELED] * labeled[:, None]
    box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    each = dict(id=number, image_id=image['id'], category_id=1, iscrowd=0, bbox=box)
    each |= dict(area=round(box[2] * box[3], 2), num_keypoints=int(labeled.sum()))
    each['keypoints'] = [round(value, 2) for value in points.ravel().tolist()]
    each['keypoint_scores'] = [round(value, 4) for value in scores.tolist()]
    each['keypoint_agreement'] = [round(v, 4) for v in person['agreement'][chosen].tolist()]
    each['score'] = round(float(person['bbox_scores']), 4)
    return each | ({'track_id': int(person['track_ids'])} if 'track_ids' in person else {})


def _body(person, frame) -> dict[str, Any]:
    """A row of people.npz, as `datasets.npz.NpzPeople` and tools/make_shards.py read it."""
    confidence = person['labeled'][:, None]
    points = np.float32(np.c_[person['keypoints'], confidence])
    joints = np.float32(np.c_[person['joints'], confidence])
    split = len(OPENPOSE_25)
    box = person['bboxes'].reshape(2, 2)
    return dict(
        imgname=frame['file_name'],
        center=box.mean(0),
        scale=box[1] - box[0],
        body_keypoints_2d=points[:split],
        extra_keypoints_2d=points[split:],
        body_keypoints_3d=joints[:split],
        extra_keypoints_3d=joints[split:],
        body_pose=np.r_[person['global_orient'], person['body_pose']],
        has_body_pose=np.float32(1),
        betas=person['betas'],
        has_betas=np.float32(1),
        camera=person['camera'],
        translation=person['transl'],
        focal_length=np.float32(frame['focal_length']),
        principal_point=np.float32(frame['principal_point']),
        agreement=person['agreement'],
    )


def _write(merged, path, info, images, annotations, category):
    """COCO's JSON, entry by entry: the text as a whole would take as much memory again."""
    with whole_file(path) as part, open(part, 'w', encoding='utf-8') as file:
        head = dict(info=info, licenses=[], categories=[category])
        file.write(json.dumps(head)[:-1])
        for name, entries in (('images', images.values()), ('annotations', annotations)):
            file.write(f',\n"{name}": [')
            for index, each in enumerate(entries):
                file.write(',\n' * bool(index) + json.dumps(each, separators=(',', ':')))
            file.write(']')
        file.write('}\n')
    merged.files.append(path)


# --- The contact sheet ----------------------------------------------------------------------------
def _sheet(out, samples, links):
    """A column of people for `kept` and for each reason; None without any image."""
    titles = [KEPT, *(reason for reason in REASONS if reason in samples)]
    columns = [[_drawn(out, person, links) for person in samples[title]] for title in titles]
    columns = [each + [None] * (max(map(len, columns)) - len(each)) for each in columns]
    rows = [row for row in zip(*columns, strict=True) if any(cell is not None for cell in row)]
    return contact_sheet(rows, titles) if rows else None


def _drawn(out, person, links):
    """The part of the image around a person, with the labels; None if it cannot be read."""
    try:
        image = read_image(out / person.file_name)
    except Unreadable:
        return None
    size = person.box[2:] - person.box[:2]
    low = np.maximum(person.box[:2] - 0.15 * size, 0).astype(int)
    high = np.minimum(person.box[2:] + 0.15 * size, image.shape[1::-1]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    if not part.size:
        return None
    scale = 256 / part.shape[0]
    part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points = np.rint((person.points[:, :2] - low) * scale).clip(-1e4, 1e4).astype(int).tolist()
    labeled = person.points[:, 2] > 0
    for first, second in links:
        if labeled[first] and labeled[second]:
            cv2.line(part, points[first], points[second], LINE, 2, cv2.LINE_AA)
    for point in np.flatnonzero(labeled):
        cv2.circle(part, points[point], 3, POINT, -1, cv2.LINE_AA)
    return part
