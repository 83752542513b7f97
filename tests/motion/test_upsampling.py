import torch
import torch.nn.functional as F

from lfdm.motion.upsampling import bilinear_logits, convex_double


def test_bilinear_logits_double_almost_as_bilinear_interpolation() -> None:
    x = torch.rand(2, 3, 5, 7)
    doubled = convex_double(x, bilinear_logits().view(1, -1, 1, 1).expand(2, -1, 5, 7))
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(doubled, expected, atol=0.01, rtol=0)


def test_equal_neighbours_give_exactly_their_value() -> None:
    logits = 3 * torch.randn(1, 36, 4, 6)
    for value in (0.0, 1.0, -0.3):
        x = torch.full((1, 2, 4, 6), value)
        assert torch.equal(convex_double(x, logits), torch.full((1, 2, 8, 12), value))


def test_every_fine_cell_is_a_weighted_mean_of_nine_coarse_cells() -> None:
    x, logits = torch.randn(1, 1, 4, 5), torch.randn(1, 36, 4, 5)
    fine = convex_double(x, logits)
    neighbours = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).view(9, 4, 5)
    weights = logits[0].view(4, 9, 4, 5).softmax(1)
    for cell, (top, left) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        torch.testing.assert_close(fine[0, 0, top::2, left::2], (weights[cell] * neighbours).sum(0))


def test_one_weight_selects_one_neighbour() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    logits = torch.full((1, 36, 3, 4), -50.0)
    logits[:, [0, 9, 18, 27]] = 50.0  # the neighbour above and to the left
    fine = convex_double(x, logits)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")[:, :, :3, :4]
    torch.testing.assert_close(fine, F.interpolate(padded, scale_factor=2, mode="nearest"))
