"""What travels between the two halves of SOFS: the encoded support and the answer on the feature grid."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SupportState:
    """All that a query needs to know of its support; tensors only.

    Attributes:
        unit: Per layer (B, S, N, C): unit-length backbone features.
        intensity: (B, S, N): foreground share m of every cell.
        count: (B, S): multiplicity of each view; 0 = padding.
        share: (B, S): weight of each view in a mean over views, sums to 1 (or 0 without any).
        bias: (B, E): what the mean prototype gq adds in the query merge.
        key: (B, J, E): unit-length support features after attention, cells with foreground only.
        key_mask: (B, J): their foreground shares.
        value: (B, J, E): their weighted features.
        classifier: (B, E): the prototype z.
        foreground: (B,) bool: any foreground pixel in any view; without, the abnormality map is the answer.
    """

    unit: tuple[Tensor, ...]
    intensity: Tensor
    count: Tensor
    share: Tensor
    bias: Tensor
    key: Tensor
    key_mask: Tensor
    value: Tensor
    classifier: Tensor
    foreground: Tensor


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Answer on the feature grid.

    Attributes:
        logits: (B, Q, h, w): foreground logit; exactly 0 without support foreground (prototype classifier).
        abnormal: (B, Q, h, w): 1 - similarity to the most similar normal cell, maximum over layers (2.6).
    """

    logits: Tensor
    abnormal: Tensor
