"""Results and learning curves from the folders that tools/train.py and tools/test.py write.

These are text: JSON of scalars, and the dumped config, which is parsed as data and never executed.
"""

import ast
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from report.results import Result
from trunchier import zoo
from trunchier.metrics.mesh import PHI

METRICS = {name: factor for names, factor in PHI.values() for name in names}
# Keys of a config that say where files are, not how a model is measured.
PLACES = {'out', 'outfile_prefix', 'data_root', 'data_prefix', 'img_dir', 'num_workers'}


def read_result(folder: str | Path) -> Result:
    """The metrics of the newest run in a work_dir that has any: a test, or the last validation.

    Raises:
        OSError, ValueError: no such folder, no config of a known model, or no metrics in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}')
    model = model_of(folder)
    for run in sorted(folder.glob('*/vis_data'), reverse=True):
        files = sorted([run.parent / f'{run.parent.name}.json', *run.glob('*.json')])
        found = [metrics for file in files if file.is_file() for metrics in scored(file)]
        if found:
            values = {key: value for key, value in found[-1].items() if math.isfinite(value)}
            if missing := sorted({*found[-1]} - {*values}):
                raise ValueError(f'{run.parent}: {", ".join(missing)} is not finite')
            note = f'{folder.name}/{run.parent.name}'
            return Result(model, 'ours', protocol(run / 'config.py'), note=note, metrics=values)
    raise ValueError(f'{folder}: no run with {", ".join(METRICS)}; did a validation or test end?')


def model_of(folder: Path) -> str:
    """The paper's name of the model of a work_dir, by the name of its config."""
    found = set()
    stems = sorted(path.stem for path in folder.glob('*.py'))
    for row in zoo.TASKS.values():
        prefix = row.config.partition('{}')[0]
        encoders = [
            stem.removeprefix(prefix).partition('_')[0] for stem in stems if stem.startswith(prefix)
        ]
        found |= {row.paper_name(each) for each in encoders if each in zoo.ENCODERS}
    if len(found) != 1:
        raise ValueError(
            f'{folder}: expected the config of one model, named as in configs/, such as '
            f'td-hm_swin-t-s3_mine.py; found {", ".join(stems) or "none"}'
        )
    return found.pop()


def lines(path: Path) -> list[dict]:
    """Records of a JSON lines file; an unfinished last line, of a run that was killed, is left out.

    Raises:
        ValueError: another line is no JSON object.
    """
    texts = [text for text in path.read_text(encoding='utf-8').splitlines() if text.strip()]
    records = []
    for number, text in enumerate(texts, 1):
        try:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise ValueError('no object')
        except (ValueError, RecursionError) as error:
            if number == len(texts) > 1:
                break
            raise ValueError(f'{path}, line {number}: not what mmengine logs: {error}') from None
        records.append(record)
    return records


def scored(path: Path) -> list[dict[str, float]]:
    """{'DATASET/METRIC': value in % or mm} of each evaluation in a file of scalars."""
    found = []
    for record in lines(path):
        metrics = {
            key: METRICS[key.rpartition('/')[2]] * float(value)
            for key, value in record.items()
            if '/' in key and key.rpartition('/')[2] in METRICS and isinstance(value, int | float)
        }
        if metrics:
            found.append(metrics)
    return found


def protocol(path: Path) -> str:
    """How a run was tested: its annotations, and a digest of data, pipeline and metrics.

    Raises:
        OSError, ValueError: no dumped config, or none that can be read without executing it.
    """
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        config = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        dataset = literal(config['test_dataloader'])['dataset']
        tested = [dataset, literal(config['test_evaluator'])]
        tested.append(literal(config['model']).get('test_cfg'))
    except (SyntaxError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'{path}: no dumped config of a test: {error!r}') from None
    text = json.dumps(without_places(tested), sort_keys=True, default=str)
    names = sorted({*annotations(dataset)}) or ['no annotations']
    return f'{", ".join(names)} (settings {hashlib.sha256(text.encode()).hexdigest()[:6]})'


def literal(node: ast.expr) -> Any:
    """Value of an expression made of literals and `dict(...)`; ValueError for anything else."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {each.arg: literal(each.value) for each in node.keywords}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {literal(key): literal(value) for key, value in pairs}
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [literal(each) for each in node.elts]
    return ast.literal_eval(node)


def without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items() if key not in PLACES}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and '/' in value else value


def annotations(value: Any) -> list[str]:
    """Names of the annotation files anywhere in the config of a data set."""
    if isinstance(value, dict):
        own = [Path(value['ann_file']).name] if isinstance(value.get('ann_file'), str) else []
        return own + [name for each in value.values() for name in annotations(each)]
    return [name for each in value for name in annotations(each)] if isinstance(value, list) else []


def checkpoint_of(folder: Path) -> tuple[Path, Path]:
    """Config and best, or else last, checkpoint of a work_dir; ValueError if it has none."""
    configs = sorted(folder.glob('*.py'))
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    pointer = folder / 'last_checkpoint'
    if not best and pointer.is_file():
        best = [folder / Path(pointer.read_text(encoding='utf-8').strip()).name]
    if len(configs) != 1 or not best or not best[-1].is_file():
        raise ValueError(f'{folder}: expected one config and a checkpoint, as training leaves them')
    return configs[0], best[-1]
