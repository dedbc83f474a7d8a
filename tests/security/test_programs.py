"""Exported files of torch are programs: they are refused before any byte of them is interpreted."""

import io
import json
import zipfile

import pytest
import torch
from versions import require_torch

from trunchier.deploy.runtime import EXTRA_FILE, ExportedNetwork, ExportError
from trunchier.inference.pose import PoseInferencer
from trunchier.weights.load import CheckpointError, read_weights


class Writes(torch.nn.Module):
    """TorchScript that creates a file, which needs no Python."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x + torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(65).sum()]


@pytest.fixture
def canary(tmp_path):
    return tmp_path / 'canary'


def torchscript(path, canary):
    facts = dict(task='pose', model='VMPose-T-S2', dynamic_batch=True, outputs=['heatmaps'])
    script = torch.jit.script(Writes(str(canary)))
    torch.jit.save(script, str(path), _extra_files={EXTRA_FILE: json.dumps(facts)})
    return path


def torch_export(path, canary):
    """A file of torch.export whose pickled members would create `canary`."""

    class Evil:
        def __reduce__(self):
            return open, (str(canary), 'w')

    require_torch('2.6', 'torch.export')
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    whole, evil = io.BytesIO(), io.BytesIO()
    torch.export.save(program, whole)
    torch.save(Evil(), evil)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            keep = name.endswith('.json') or 'version' in name or 'format' in name
            target.writestr(name, source.read(name) if keep else evil.getvalue())
    return path


CRAFTED = {'.pt': torchscript, '.pt2': torch_export}


@pytest.mark.filterwarnings('ignore:.*torch.jit')
@pytest.mark.parametrize('suffix', CRAFTED)
def test_a_program_is_refused_by_default_and_does_not_run(suffix, tmp_path, canary):
    path = CRAFTED[suffix](tmp_path / f'model{suffix}', canary)
    with pytest.raises(ExportError, match=r'is a program of torch.*ONNX.*trust=True'):
        ExportedNetwork(path)
    with pytest.raises(ExportError, match='is a program of torch'):
        PoseInferencer('VMPose-T-S2', weights=path)
    assert not canary.exists()


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_a_trusted_program_runs_whatever_it_likes(tmp_path, canary):
    network = ExportedNetwork(torchscript(tmp_path / 'model.pt', canary), trust=True)
    network(torch.zeros(1))
    assert canary.read_text() == 'AAAA'


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_a_program_is_not_read_as_weights(tmp_path, canary):
    path = tmp_path / 'weights.pth'
    torch.jit.save(torch.jit.script(Writes(str(canary))), str(path))
    with pytest.raises(CheckpointError, match='weights.pth cannot be read as weights'):
        read_weights(path)
    assert not canary.exists()
