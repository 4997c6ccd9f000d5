import pytest
import torch

from mvmae.method.losses import nt_xent

pytestmark = pytest.mark.parity
lightly_loss = pytest.importorskip("lightly.loss")


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("images", [2, 16])
def test_nt_xent_and_its_gradients_are_lightlys(images, temperature):
    ours = torch.randn(2, images, 32, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    loss = nt_xent(*ours, temperature=temperature)
    reference = lightly_loss.NTXentLoss(temperature=temperature)(*theirs)
    torch.testing.assert_close(loss, reference)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
