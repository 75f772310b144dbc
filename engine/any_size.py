"""The letterbox of pipelines.augment as matrix products, so that an ONNX file can take a picture of any size.

    y = R · x · Cᵀ        R [size, height] and C [size, width]: a row for each row of the output, zero in the borders

Resizing is linear in the pixels and separable, and what surrounds the picture is black: two products are the
resampling, its filter and the borders at once, exact to the pipeline's rounding, on whatever has a matrix product.
"""

import torch
from torch import Tensor, nn


class Letterbox(nn.Module):
    """uint8 [N, H, W, 3] of any size to whole numbers of 0 to 255, float32 [N, 3, size, size].

    A pixel differs by 1 at most from the pipeline's, which rounds sums in another order.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[1], images.shape[2]
        sides = torch.full((1,), height, dtype=torch.float64), torch.full((1,), width, dtype=torch.float64)
        scale = torch.minimum(self.size / sides[0], self.size / sides[1])
        # DALI rounds in float32, which decides about sides that end at half a pixel.
        size = torch.full((1,), self.size, dtype=torch.float32)  # a number would be divided as times the reciprocal
        single = torch.minimum(size / sides[0].float(), size / sides[1].float())
        shown = [torch.floor((side.float() * single).double() + 0.5).clamp(min=1) for side in sides]
        rows = self._weights(torch.arange(height), sides[0], shown[0], scale)
        columns = self._weights(torch.arange(width), sides[1], shown[1], scale)
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        resized = torch.matmul(torch.matmul(rows, pixels), columns.transpose(0, 1))
        return torch.floor(resized + 0.5).clamp(0, 255)

    def _weights(self, pixel: Tensor, side: Tensor, shown: Tensor, scale: Tensor) -> Tensor:
        """[size, side]: of each pixel in each row of the output, `shown` of which show some; all float64 [1].

        A triangle filter as wide as an output pixel when shrinking, and as an input pixel when enlarging; the outermost
        pixels stand for what lies beyond them. The rounded output keeps the scale: it is laid around the middle.
        """
        place = torch.arange(self.size).double() - torch.floor((self.size - shown + 1) / 2)
        centre = (place + 0.5 - shown / 2) / scale + side / 2
        radius = torch.clamp(1 / scale, min=1)
        weights = (1 - ((pixel.double() + 0.5 - centre[:, None]) / radius).abs()).clamp(min=0)
        before, after = _beyond(centre, radius), _beyond(side - centre, radius)
        total = weights.sum(1) + before + after
        weights = weights + torch.where(pixel == 0, 1.0, 0.0) * before[:, None]
        weights = weights + torch.where(pixel == side - 1, 1.0, 0.0) * after[:, None]
        within = torch.where((place >= 0) & (place < shown), 1 / total, 0.0)
        return (weights * within[:, None]).float()


def _beyond(centre: Tensor, radius: Tensor) -> Tensor:
    """Sum of the filter over the pixels before the first, an arithmetic series: Σ 1 − (centre − k − ½)/radius."""
    count = (-torch.floor(centre - radius + 0.5)).clamp(min=0)
    return count * (1 - centre / radius) - count * count / (2 * radius)
