import pytest
import torch

from lfdm.errors import UserError
from lfdm.evaluation.metrics.frames import MAX_PSNR, l1_per_clip, psnr_per_clip, ssim_per_clip


def test_l1_and_psnr_of_a_constant_difference() -> None:
    a = torch.zeros(2, 3, 4, 12, 12)
    b = a.clone()
    b[1] += 0.1
    assert l1_per_clip(a, b).tolist() == pytest.approx([0, 0.1])
    assert psnr_per_clip(a, b).tolist() == pytest.approx([MAX_PSNR, 20], abs=1e-3)


def test_ssim_is_one_for_equal_frames_and_follows_its_closed_form_for_constant_ones() -> None:
    a = torch.rand(2, 3, 2, 16, 16)
    assert ssim_per_clip(a, a).tolist() == pytest.approx([1, 1], abs=1e-5)
    flat = torch.full_like(a, 0.2), torch.full_like(a, 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim_per_clip(*flat).tolist() == pytest.approx([expected] * 2, abs=1e-3)


def test_ssim_equals_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image", reason="needs torchmetrics: pip install 'lfdm[dev]'")
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 2, 24, 24, generator=generator)
    b = (a + 0.2 * torch.rand(a.shape, generator=generator)).clamp(0, 1)
    frames = [v[0].transpose(0, 1).double() for v in (a, b)]
    padded = functional.structural_similarity_index_measure(*frames, data_range=1.0, kernel_size=11, sigma=1.5)
    assert ssim_per_clip(a, b).item() == pytest.approx(float(padded), abs=2e-3)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(UserError, match="at least 11x11"):
        ssim_per_clip(torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 3, 1, 8, 8))
