"""The lifters of the package can be trained on."""

import torch
import train_lifter

from trunchier.models.lifting.track import BodyTrackLifter


def test_the_moments_of_a_training_that_goes_on_belong_to_its_parameters():
    first, second = BodyTrackLifter(), BodyTrackLifter()
    optimizer = train_lifter.track_optimizer(first, 1e-3)
    for parameter in first.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    resumed = train_lifter.track_optimizer(second, 1e-3)
    resumed.load_state_dict(optimizer.state_dict())
    gradients = [parameter.grad for parameter in first.parameters()]
    for gradient, parameter in zip(gradients, second.parameters(), strict=True):
        torch.testing.assert_close(resumed.state[parameter]['exp_avg'], 0.1 * gradient)
    assert [group['lr'] for group in resumed.param_groups] == [0.3e-3, 1e-3]
