"""The shifted split attention of S2-MLPv2."""

from mixer_kernels.ops.split_attention.op import ShiftedSplitAttentionFunction, shifted_split_attention

__all__ = ["ShiftedSplitAttentionFunction", "shifted_split_attention"]
