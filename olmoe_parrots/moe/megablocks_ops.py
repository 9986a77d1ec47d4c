"""Torch stand-ins for the two compiled modules that MegaBlocks imports: `megablocks_ops` and `grouped_gemm`.

Calling conventions are those of MegaBlocks 0.10: results go into an `out` argument where the compiled function
takes one. Shape legend: B batch rows, N values, S bins, M rows, E groups (experts).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# grouped_mm is public from 2.10 and dependable on CPU from 2.11
_HAS_GROUPED_MM = hasattr(F, "grouped_mm") and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
_GROUPED_MM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# ---------------------------------------------------------------- megablocks_ops


def inclusive_cumsum(x_BN: Tensor, dim: int, out_BN: Tensor) -> None:
    """Write the running sum of each row of `x_BN` to `out_BN`; `dim` must be 1."""
    _require(x_BN.ndim == 2 and dim == 1, f"cumsum wants a matrix and dim 1, got {x_BN.ndim} dimensions, dim {dim}")
    torch.cumsum(x_BN, dim, dtype=x_BN.dtype, out=out_BN)


def exclusive_cumsum(x_BN: Tensor, dim: int, out_BN: Tensor) -> None:
    """Like `inclusive_cumsum`, each sum without its own element."""
    inclusive_cumsum(x_BN, dim, out_BN)
    out_BN.sub_(x_BN)


def histogram(x: Tensor, num_bins: int) -> Tensor:
    """Count the values 0 … `num_bins` - 1 of `x` (N,) or (B, N): int32 of (S,) or (B, S)."""
    counts = torch.zeros(*x.shape[:-1], num_bins, dtype=torch.int32, device=x.device)
    return counts.scatter_add_(-1, x.long(), torch.ones_like(x, dtype=torch.int32))


def sort(x_N: Tensor, end_bit: int, values_N: Tensor, order_N: Tensor) -> None:
    """Stable ascending sort by the lowest `end_bit` bits; writes the sorted values and where each came from."""
    bits = torch.iinfo(x_N.dtype).bits
    keys_N = x_N if end_bit >= bits else x_N & ((1 << end_bit) - 1)
    order = torch.sort(keys_N, stable=True).indices
    values_N.copy_(x_N[order])
    order_N.copy_(order)


def indices(padded_bins_E: Tensor, block_size: int, block_rows: int, block_columns: int, out: Tensor) -> None:
    """Column indices of the block-diagonal matrix of (rows of expert e) x (columns of expert e).

    `padded_bins_E` holds the running token count per expert, each a multiple of `block_size`; `out` is int16 of
    (block_rows * block_columns,).
    """
    ends = torch.div(padded_bins_E, block_size, rounding_mode="floor")
    rows = torch.arange(block_rows, device=out.device, dtype=ends.dtype)
    expert = torch.searchsorted(ends, rows, right=True)
    columns = torch.arange(block_columns, device=out.device)
    written = expert < padded_bins_E.numel()
    out.view(block_rows, block_columns)[written] = (expert[written, None] * block_columns + columns).to(out.dtype)


def replicate_forward(x_BS: Tensor, bins_S: Tensor, out_BN: Tensor) -> None:
    """Write value s of each row at the positions of bin s; `bins_S` holds the bins' ends."""
    bin_of_N = _bin_of_position(bins_S, out_BN.shape[1])
    out_BN[:, : bin_of_N.numel()] = x_BS[:, bin_of_N]


def replicate_backward(grad_BN: Tensor, bins_S: Tensor, out_BS: Tensor) -> None:
    """Write the sum of `grad_BN` over each bin's positions."""
    bin_of_N = _bin_of_position(bins_S, grad_BN.shape[1])
    exact = torch.promote_types(grad_BN.dtype, torch.float32)
    sums = torch.zeros(out_BS.shape, dtype=exact, device=out_BS.device)
    out_BS.copy_(sums.index_add_(1, bin_of_N, grad_BN[:, : bin_of_N.numel()].to(exact)))


def _bin_of_position(bins_S: Tensor, length: int) -> Tensor:
    """The bin of each position that some bin holds: (N',) with N' <= `length`."""
    positions = torch.arange(length, device=bins_S.device, dtype=bins_S.dtype)
    bin_of = torch.searchsorted(bins_S, positions, right=True)
    return bin_of[bin_of < bins_S.numel()]


# ---------------------------------------------------------------- grouped_gemm


def backend_gmm(
    a: Tensor, b: Tensor, batch_sizes: Tensor, trans_a: bool = False, trans_b: bool = False, c: Tensor | None = None
) -> Tensor:
    """Multiply group by group, without autograd; row m of `a` belongs to the group that `batch_sizes` (E,) says.

    Plain: a (M, I) @ b (E, I, J) -> (M, J), with `trans_b` b is (E, J, I). With `trans_a`: a (M, I), b (M, J)
    -> (E, I, J), one product of transposed rows a group. Writes into `c` where one is given.
    """
    _require(not (trans_a and trans_b), "gmm takes trans_a or trans_b, not both")
    _require(int(batch_sizes.sum()) == a.shape[0], f"batch_sizes must add up to the {a.shape[0]} rows of a")
    with torch.no_grad():
        left, right = (a.t() if trans_a else a), (b.transpose(1, 2) if trans_b else b)
        if _grouped_mm_takes(left, right):
            offsets = batch_sizes.cumsum(0).to(device=a.device, dtype=torch.int32)
            product = F.grouped_mm(left, right, offs=offsets)
        elif trans_a:
            product = _loop_over_reduction(a, b, batch_sizes.tolist())
        else:
            product = _loop_over_rows(a, right, batch_sizes.tolist())
        # grouped_mm pads its rows to 16 bytes, and MegaBlocks' kernels take every tensor as contiguous
        return product.contiguous() if c is None else c.copy_(product)


def _loop_over_rows(a: Tensor, b: Tensor, sizes: list[int]) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[2])
    for rows, matrix, target in zip(a.split(sizes), b.unbind(0), out.split(sizes), strict=True):
        torch.mm(rows, matrix, out=target)
    return out


def _loop_over_reduction(a: Tensor, b: Tensor, sizes: list[int]) -> Tensor:
    pairs = zip(a.split(sizes), b.split(sizes), strict=True)
    return torch.stack([rows_a.t() @ rows_b for rows_a, rows_b in pairs])


def _grouped_mm_takes(left: Tensor, right: Tensor) -> bool:
    return _HAS_GROUPED_MM and left.dtype == right.dtype and left.numel() > 0 and all(map(_is_aligned, (left, right)))


def _is_aligned(matrix: Tensor) -> bool:
    """Whether grouped_mm takes the operand: dtype, one unit stride in the last two, all else multiples of 16 bytes."""
    if matrix.dtype not in _GROUPED_MM_DTYPES or matrix.data_ptr() % 16:
        return False
    strides = matrix.stride()
    unit = -1 if strides[-1] == 1 else -2
    other = -3 - unit
    if strides[unit] != 1 or strides[other] < matrix.shape[unit]:
        return False
    return all(stride * matrix.element_size() % 16 == 0 for i, stride in enumerate(strides) if i != len(strides) + unit)


class _GroupedGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool) -> Tensor:
        ctx.save_for_backward(a, b, batch_sizes)
        ctx.trans_b = trans_b
        return backend_gmm(a, b, batch_sizes, trans_b=trans_b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        a, b, batch_sizes = ctx.saved_tensors
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = backend_gmm(grad, b, batch_sizes, trans_b=not ctx.trans_b)
        if ctx.needs_input_grad[1]:
            left, right = (grad, a) if ctx.trans_b else (a, grad)
            grad_b = backend_gmm(left, right, batch_sizes, trans_a=True)
        return grad_a, grad_b, None, None


def gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool = False) -> Tensor:
    """`backend_gmm` with gradients for a (M, I) and b (E, I, J), or (E, J, I) with `trans_b`: (M, J)."""
    return _GroupedGemm.apply(a, b, batch_sizes, trans_b)


# ---------------------------------------------------------------- as modules


def make_megablocks_ops() -> ModuleType:
    """A module that serves as `megablocks_ops`."""
    functions = (
        exclusive_cumsum,
        inclusive_cumsum,
        histogram,
        indices,
        sort,
        replicate_forward,
        replicate_backward,
    )
    return _module("megablocks_ops", **{function.__name__: function for function in functions})


def make_grouped_gemm() -> ModuleType:
    """A module that serves as `grouped_gemm`, with `ops.gmm` and `backend.gmm`."""
    ops = _module("grouped_gemm.ops", gmm=gmm)
    backend = _module("grouped_gemm.backend", gmm=backend_gmm)
    return _module("grouped_gemm", ops=ops, backend=backend)


@contextmanager
def importable(modules: list[ModuleType]) -> Iterator[None]:
    """Let `import` find `modules` inside the block only, so that no other package takes them for the compiled ones."""
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for module in modules:
            sys.modules.pop(module.__name__, None)


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name, "Stand-in written in torch.")
    module.__spec__ = ModuleSpec(name, loader=None)
    module.__dict__.update(contents)
    return module


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
