"""CBDNet's own two terms, on its estimate of the noise (Guo et al., CVPR 2019, section 3.3).

Its objective is mean squared error + 0.5 x asymmetry + 0.05 x total variation.
"""

from __future__ import annotations

from torch import Tensor, nn

_ALPHA = 0.3  # weight of over-estimation; under-estimation, which leaves noise in the image, has 1 - alpha


class NoiseAsymmetry(nn.Module):
    """Squared error of the estimated noise level, in which under-estimation counts for more (section 3.3).

        L = mean |alpha - 1[e < s]| (e - s)^2,   alpha = 0.3         e estimated, s true standard deviation

    Example:
        >>> import torch
        >>> clean = restored = torch.rand(1, 3, 4, 4)
        >>> estimate = torch.full((1, 3, 4, 4), 0.1, requires_grad=True)
        >>> value = NoiseAsymmetry()(restored, clean, estimate=estimate, sigma=torch.tensor([51.0]))
        >>> value.backward()
        >>> round(value.item(), 4)
        0.007
    """

    def forward(self, restored: Tensor, clean: Tensor, *, estimate: Tensor, sigma: Tensor) -> Tensor:
        """The error of the estimate; the images are not used.

        Args:
            restored, clean: (B, 3, H, W).
            estimate: (B, 3, H, W), standard deviation of the noise in units of the image, see `CBDNet.with_estimate`.
            sigma: (B,), the true one in units of 0..255.

        Returns:
            A scalar >= 0, 0 where the estimate is right everywhere.

        Raises:
            ValueError: estimate or sigma of another shape.
        """
        if estimate.ndim != 4 or sigma.shape != estimate.shape[:1]:
            shapes = f"{tuple(sigma.shape)} for an estimate of {tuple(estimate.shape)}"
            raise ValueError(f"sigma: shape {shapes}; give one number for each image")
        error = estimate - (sigma / 255).view(-1, 1, 1, 1)
        weight = (_ALPHA - (error < 0).to(error.dtype)).abs()
        return (weight * error.square()).mean()


class NoiseTotalVariation(nn.Module):
    """Total variation of the estimated noise level (section 3.3), as a mean over the batch and the image.

        L = mean (difference of vertical neighbours)^2 + mean (difference of horizontal neighbours)^2

    Example:
        >>> import torch
        >>> clean = restored = torch.rand(1, 3, 4, 4)
        >>> estimate = torch.arange(4.0).expand(1, 3, 4, 4).clone().requires_grad_()
        >>> value = NoiseTotalVariation()(restored, clean, estimate=estimate)
        >>> value.backward()
        >>> value.item()
        1.0
    """

    def forward(self, restored: Tensor, clean: Tensor, *, estimate: Tensor) -> Tensor:
        """The variation of the estimate; the images are not used.

        Args:
            restored, clean: (B, 3, H, W).
            estimate: (B, 3, H, W), H and W at least 2, see `CBDNet.with_estimate`.

        Returns:
            A scalar >= 0, 0 where the estimate of an image is the same everywhere.

        Raises:
            ValueError: estimate of another shape, or of a single row or column.
        """
        if estimate.ndim != 4 or min(estimate.shape[2:]) < 2:
            raise ValueError(f"estimate: shape {tuple(estimate.shape)}; give (B, 3, H, W), H and W at least 2")
        return estimate.diff(dim=2).square().mean() + estimate.diff(dim=3).square().mean()
