"""How hard each person of a batch was, for a sampler that shows hard images again."""

from collections.abc import Sequence

import torch
from mmengine.dist import all_gather
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn


@HOOKS.register_module()
class RevisitHook(Hook):
    """Tell a RevisitSampler the loss of each person, and keep what it knows in checkpoints.

    The loss is the mean square error of the heatmaps of a person's labeled keypoints, measured
    where the head computes its loss. All ranks know all losses, so that their samples are those of
    one process with the joint batch. With StreamTrainLoop only.

    Raises:
        TypeError: another sampler, or a head without heatmaps.
    """

    def before_train(self, runner: Runner) -> None:
        self.sampler = runner.train_dataloader.sampler
        if not hasattr(self.sampler, 'tell'):
            raise TypeError(
                f'RevisitHook tells a RevisitSampler, not a {type(self.sampler).__name__}; set '
                "train_dataloader.sampler = dict(type='RevisitSampler')"
            )
        hub = runner.message_hub
        if runner.iter and 'revisits' in hub.runtime_info:
            self.sampler.load_state_dict(hub.get_info('revisits'))
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._found = None
        self._handle = model.head.loss_module.register_forward_hook(self._measure)

    def _measure(self, module: nn.Module, inputs: tuple, loss: Tensor) -> None:
        self._found = difficulties(*inputs)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | Sequence | None = None,
        outputs: dict | None = None,
    ) -> None:
        found = torch.stack(all_gather(self._found), 1).flatten()  # as positions: rank by rank
        behind = runner.message_hub.get_info('stream')['position']
        self.sampler.tell(behind - len(found), found.cpu().numpy())
        runner.message_hub.update_info('revisits', self.sampler.state_dict())

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()


@torch.no_grad()
def difficulties(found: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean square error of the heatmaps of each person's labeled keypoints: (B,).

    Args:
        found, target: (B, K, H, W). weights: (B, K), 0 for keypoints without a label.

    Raises:
        TypeError: no heatmaps.
    """
    if not (isinstance(found, Tensor) and found.shape == target.shape and found.ndim == 4):
        raise TypeError(
            'RevisitHook measures heatmaps (B, K, H, W), as of a HeatmapHead; remove it, and use '
            'MixSampler'
        )
    labeled = (weights > 0).flatten(2).any(2) if weights.ndim > 2 else weights > 0
    errors = (found.float() - target.float()).square().mean((2, 3)) * labeled
    return errors.sum(1) / labeled.sum(1).clamp_min(1)
