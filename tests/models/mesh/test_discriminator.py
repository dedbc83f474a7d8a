import torch
from golden_rule import golden_state, golden_tensor, load_golden

from trunchier.models.mesh.discriminator import HMRDiscriminator
from trunchier.models.mesh.losses import discriminator_loss, generator_loss
from trunchier.weights.families import from_hmr2

GOLDEN = load_golden('hmr2_losses')['discriminator']


def official():
    critics = HMRDiscriminator()
    state = from_hmr2(golden_state(GOLDEN['keys']))
    critics.load_state_dict(
        {key.removeprefix('discriminator.'): value for key, value in state.items()}
    )
    return critics


def test_scores_are_the_official_ones():
    scores = official()(golden_tensor(GOLDEN['poses']), golden_tensor(GOLDEN['betas']))
    assert (scores - golden_tensor(GOLDEN['output'])).abs().max() < 1e-5


def test_adversarial_losses_are_the_official_ones():
    scores = golden_tensor(GOLDEN['output'])
    assert abs(generator_loss(scores).item() - GOLDEN['loss_adv_generator']) < 1e-5
    all_real = torch.ones(0, 25)
    assert abs(discriminator_loss(scores, all_real).item() - GOLDEN['loss_fake']) < 1e-5


def test_losses_by_hand():
    fake, real = torch.full((2, 25), 0.5), torch.full((4, 25), 0.8)
    assert generator_loss(fake).item() == 25 * 0.25
    # Four real bodies for two predictions count twice, as official.
    expected = 25 * 0.25 + 2 * 25 * 0.2**2
    assert abs(discriminator_loss(fake, real).item() - expected) < 1e-5


def test_each_joint_has_an_output_of_its_own():
    pose = torch.randn(1, 23, 3, 3)
    changed = pose.clone()
    changed[:, 7] += 1
    critics, betas = HMRDiscriminator(), torch.randn(1, 10)
    differs = (critics(pose, betas) != critics(changed, betas))[0]
    assert differs.nonzero().flatten().tolist() == [7, 24]


def test_the_output_of_betas_does_not_depend_on_the_pose():
    critics = HMRDiscriminator()
    pose = torch.randn(1, 23, 3, 3)
    before, after = (critics(pose, torch.randn(1, 10)) for _ in range(2))
    assert (before != after)[0].nonzero().flatten().tolist() == [23]


def test_outputs_are_initialized_at_the_official_scale():
    """Xavier with one output for each joint: uniform up to sqrt(6 / 33)."""
    largest = HMRDiscriminator().joint_out.weight.abs().max().item()
    assert 0.9 * (6 / 33) ** 0.5 < largest <= (6 / 33) ** 0.5


def test_every_parameter_learns():
    critics = HMRDiscriminator()
    generator_loss(critics(torch.randn(8, 23, 3, 3), torch.randn(8, 10))).backward()
    assert all((p.grad != 0).any() for p in critics.parameters())


def test_the_discriminator_separates_real_from_predicted():
    critics = HMRDiscriminator()
    optimizer = torch.optim.Adam(critics.parameters(), 3e-3)
    real = torch.eye(3).expand(16, 23, 3, 3), torch.zeros(16, 10)
    for _ in range(100):
        fake = torch.eye(3) + torch.randn(16, 23, 3, 3), torch.randn(16, 10)
        optimizer.zero_grad()
        discriminator_loss(critics(*fake), critics(*real)).backward()
        optimizer.step()
    assert critics(*real).mean() > critics(*fake).mean() + 0.3
