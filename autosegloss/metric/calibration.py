"""How far the confidence of a prediction is from being right that often: the expected calibration error."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError, shown
from autosegloss.metric.accumulate import Counts, Tally
from autosegloss.metric.labels import best_class, check_labels, check_tensors, whole

_BITS: Final = 28
"""A probability is counted as a whole number of 2^-28 (4e-9): finer than float32 near 1, and 10^10 pixels fit int64."""
_PART: Final = 2**16  # pixels at a time: half a megabyte a class, whatever the size of the image


class CalibrationError(Tally):
    """Expected calibration error (ECE) of the softmax of scores over a data set; 0 is calibrated, 1 is the worst.

    The pixels are binned by the confidence of their most probable class, in bins ((b - 1) / B, b / B]:
    ECE = sum_b n_b / n |accuracy_b - confidence_b|. Class-wise, this is done for each class with its own probability,
    over all pixels and with the share of the pixels that are of the class for the accuracy, and averaged over all C
    classes, those absent from the target too. Per image, it is done in each image and averaged over the images that
    have a pixel that counts. A calibrated prediction scores about sqrt(2 / pi) sum_b sqrt(n_b confidence_b
    (1 - confidence_b)) / n, which many pixels take to 0, and one image of few does not.

    Probabilities are taken image by image in float64 and counted as whole numbers of 2^-28, which moves them by at most
    2e-9; the sums are int64. The value therefore does not depend on the order of the images, the size of the batches or
    how they are sharded and merged. (The last bit of PyTorch's exponential depends on the number of threads; the
    rounding hides it from all but about one pixel in 10^7, which it moves by 4e-9.)

    Args:
        num_classes: C, 1 to 65,536.
        classwise: Whether to average over the classes, each by its own probability.
        per_image: Whether to average over the images instead of pooling their pixels.
        bins: B, 1 to 1000.
        ignore_index: The target's label of ignored pixels.

    Example:
        >>> import torch, autosegloss as asl
        >>> error = asl.CalibrationError(num_classes=2)
        >>> error.update(torch.tensor([[[3.0, 3.0], [0.0, 0.0]]]), torch.tensor([[0, 1]]))
        >>> round(error.compute(), 4)  # right half of the time, at a confidence of 0.9526
        0.4526

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; class-wise: Kull et al., Beyond
    temperature scaling, NeurIPS 2019, and Nixon et al., Measuring Calibration in Deep Learning, CVPR Workshops 2019;
    per image: Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        classwise: bool = False,
        per_image: bool = False,
        bins: int = 15,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        number = whole(bins)
        if number is None or not 1 <= number <= 1000:
            raise InputError(f"bins must be an integer from 1 to 1000, got {shown(bins)}.")
        self.classwise, self.per_image, self.bins = classwise, per_image, number
        self.reset()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_classes={self.num_classes}, classwise={self.classwise}, "
            f"per_image={self.per_image}, bins={self.bins}, ignore_index={self.ignore_index})"
        )

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            prediction: Scores (logits) (N, C, *S) of a floating type, whose softmax counts. For probabilities give
                their logarithm.
            target: Labels (N, *S) of an integer type, 0..C-1 or `ignore_index`.
            mask: True where a pixel counts, boolean (N, *S); elsewhere the target is `ignore_index`.

        Raises:
            InputError: Shapes, labels or scores are wrong; nothing has been counted then.
        """
        check_tensors(prediction, target)
        if not prediction.is_floating_point():
            raise InputTypeError(f"prediction must have a floating-point dtype, got {prediction.dtype}.")
        highest, guess = best_class(prediction, self.num_classes)
        infinite = highest.isinf()  # inf, or -inf in all classes; -inf in some is a probability of 0
        if bool(infinite.any()):
            raise InputError(
                f"scores are infinite at {int(infinite.sum())} of {infinite.numel()} pixels, without a softmax."
            )
        truth = check_labels(target, tuple(highest.shape), self.num_classes, self.ignore_index, "target", mask)
        truth = truth.to(highest.device)
        pixels = (truth != self.ignore_index).unsqueeze(-1).flatten(1).sum(1).cpu()
        gaps = torch.zeros(len(truth), self.num_classes if self.classwise else 1, self.bins, dtype=torch.int64)
        for gap, scores, *maps in zip(gaps, prediction, highest, guess == truth, truth, strict=True):
            parts = [scores.reshape(self.num_classes, -1), *(each.reshape(-1) for each in maps)]
            for part in zip(*(each.split(_PART, dim=-1) for each in parts), strict=True):
                gap += self._gaps(*part).cpu()
        if self.per_image:
            self.add(Counts({}, {"images": torch.stack([gaps.abs().sum((1, 2)), pixels], dim=1)}))
        else:
            self.add(Counts({"gaps": gaps.sum(0), "pixels": pixels.sum(0, keepdim=True)}, {}))

    def compute(self) -> float:
        """The error over everything counted so far; 0 if that is nothing."""
        totals, rows = self.counts()
        if self.per_image:
            parts = [(error, pixels) for error, pixels in rows["images"].tolist() if pixels]
        else:
            parts = [(sum(totals["gaps"].abs().flatten().tolist()), pixels) for pixels in totals["pixels"].tolist()]
        one = 2**_BITS * (self.num_classes if self.classwise else 1)
        # fsum rounds once, at the end: the order of the images changes nothing.
        return math.fsum(error / (max(pixels, 1) * one) for error, pixels in parts) / max(len(parts), 1)

    def _gaps(self, scores: Tensor, top: Tensor, right: Tensor, labels: Tensor) -> Tensor:
        """Sum of (confidence - right or wrong) in each bin, (C or 1, B), of scores (C, P) and the rest, (P,) each."""
        valid = labels != self.ignore_index
        labels, right = labels[valid], right[valid]
        powers = scores[:, valid].to(torch.float64).sub_(top[valid]).exp_()
        sums = powers.sum(0)
        said = [(1 / sums, right)]  # the power of the highest score is 1
        if self.classwise:
            said = [(p, labels == c) for c, p in enumerate(powers.div_(sums))]
        gaps = torch.zeros(len(said), self.bins, dtype=torch.int64, device=scores.device)
        for gap, (confidence, is_so) in zip(gaps, said, strict=True):
            steps = (confidence * 2**_BITS).round().to(torch.int64)
            bin_ = ((steps * self.bins - 1) >> _BITS).clamp_(min=0)  # ceil(confidence * B) - 1, in whole numbers
            gap.index_add_(0, bin_, steps - (is_so.to(torch.int64) << _BITS))
        return gaps
