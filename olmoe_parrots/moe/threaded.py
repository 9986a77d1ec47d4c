"""Experts on the CPU, each computed by one thread, with a backward pass written out.

Shapes in names: T tokens, D model width, H intermediate width, I input projection width, E experts, K experts per
token (top-k), N = T·K assignments in the order of their experts.

What is between the products of an expert is done while its rows are in the cache. Of what lies between forward and
backward pass the input projection's output alone is kept: inputs are gathered again, and the experts' N outputs are
not kept at all, since with u = act(h)·w_out the gradient of a routing weight is <grad, u> = <grad·w_outᵀ, act(h)>,
whose left is needed anyway (as in ScatterMoE, arXiv 2403.08245). Rows return to their tokens by one weighted gather.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ordering import Order, order_by_expert
from .threads import share_out

ROWS_AT_LEAST = 256
"""Of a task: smaller experts are taken together, so that what is done row by row is worth its calls."""


class Rows(NamedTuple):
    """A task: consecutive experts, how many rows each has, and which these are among the sorted assignments."""

    experts: slice
    sizes: list[int]
    rows: slice

    @property
    def total(self) -> int:
        return self.rows.stop - self.rows.start


def make_tasks(sizes: Sequence[int]) -> list[Rows]:
    """Experts with `sizes` rows each as tasks, the largest first."""
    tasks, first, begin, end = [], 0, 0, 0
    for expert, size in enumerate(sizes):
        end += size
        if end - begin >= ROWS_AT_LEAST or expert == len(sizes) - 1:
            tasks.append(Rows(slice(first, expert + 1), list(sizes[first : expert + 1]), slice(begin, end)))
            first, begin = expert + 1, end
    return sorted(tasks, key=lambda task: task.total, reverse=True)


def _run(work: Callable[[Rows], None], tasks: Sequence[Rows]) -> None:
    """All tasks: one that has more rows than its thread's share by all threads together, the others a thread each."""
    share = sum(task.total for task in tasks) / torch.get_num_threads()
    with torch.no_grad():
        for task in tasks:
            if task.total > share:
                work(task)
    share_out(work, [task for task in tasks if task.total <= share])


class ThreadedExperts(torch.autograd.Function):
    """``apply(x_TD, weights_TK, indices_TK, w_in_EID, w_out_EHD, b_in_EI, b_out_ED, activation)`` gives (T, D).

    Biases may be None; `activation` maps (n, I) to (n, H) row by row. Indices get no gradient, and a second
    derivative is refused.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        indices_TK: Tensor,
        w_in_EID: Tensor,
        w_out_EHD: Tensor,
        b_in_EI: Tensor | None,
        b_out_ED: Tensor | None,
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        order = order_by_expert(indices_TK, w_in_EID.shape[0])
        hidden_NI = x_TD.new_empty(indices_TK.numel(), w_in_EID.shape[1])
        y_ND = x_TD.new_empty(indices_TK.numel(), x_TD.shape[1])
        w_in_T, w_out = w_in_EID.transpose(1, 2).unbind(0), w_out_EHD.unbind(0)
        tasks = make_tasks(torch.diff(order.ends_E, prepend=order.ends_E.new_zeros(1)).tolist())

        def forward_rows(task: Rows) -> None:
            experts, sizes, rows = task
            x, hidden, y = x_TD.index_select(0, order.token_N[rows]), hidden_NI[rows], y_ND[rows]
            _products(x.split(sizes), w_in_T[experts], hidden.split(sizes))
            if b_in_EI is not None:
                hidden += b_in_EI.index_select(0, order.experts_N[rows])
            _products(activation(hidden).split(sizes), w_out[experts], y.split(sizes))
            if b_out_ED is not None:
                y += b_out_ED.index_select(0, order.experts_N[rows])

        _run(forward_rows, tasks)
        ctx.save_for_backward(x_TD, weights_TK, w_in_EID, w_out_EHD, b_in_EI, b_out_ED, hidden_NI, *order)
        ctx.activation, ctx.tasks = activation, tasks
        return F.embedding_bag(order.place_TK, y_ND, per_sample_weights=weights_TK, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, w_in_EID, w_out_EHD, b_in_EI, b_out_ED, hidden_NI, *order = ctx.saved_tensors
        saved = _Saved(x_TD, weights_TK, w_in_EID, w_out_EHD, b_in_EI, b_out_ED, hidden_NI, Order(*order))
        backward = _Backward(saved, grad_TD, ctx.activation)
        _run(backward.rows, ctx.tasks)
        place_TK = saved.order.place_TK
        grad_weights_TK = backward.weights_N.index_select(0, place_TK.flatten()).view_as(weights_TK)
        grad_x_TD = F.embedding_bag(place_TK, backward.x_ND, mode="sum")
        return grad_x_TD, grad_weights_TK, None, backward.w_in, backward.w_out, backward.b_in, backward.b_out, None


class _Saved(NamedTuple):
    x_TD: Tensor
    weights_TK: Tensor
    w_in_EID: Tensor
    w_out_EHD: Tensor
    b_in_EI: Tensor | None
    b_out_ED: Tensor | None
    hidden_NI: Tensor
    order: Order


class _Backward:
    """The gradients of all inputs, which :meth:`rows` fills in one task at a time."""

    def __init__(self, saved: _Saved, grad_TD: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        self.saved, self.grad_TD, self.activation = saved, grad_TD, activation
        self._w_in, self._w_out_T = saved.w_in_EID.unbind(0), saved.w_out_EHD.transpose(1, 2).unbind(0)
        self._routing_weights_N = saved.weights_TK.flatten().index_select(0, saved.order.assignment_N)
        self.weights_N = torch.empty_like(self._routing_weights_N)
        self.x_ND = saved.x_TD.new_empty(len(self.weights_N), saved.x_TD.shape[1])
        self.w_in, self.w_out = torch.empty_like(saved.w_in_EID), torch.empty_like(saved.w_out_EHD)
        self._each_w_in, self._each_w_out = self.w_in.unbind(0), self.w_out.unbind(0)
        self.b_in = None if saved.b_in_EI is None else torch.zeros_like(saved.b_in_EI)
        self.b_out = None if saved.b_out_ED is None else torch.zeros_like(saved.b_out_ED)

    def rows(self, task: Rows) -> None:
        (experts, sizes, rows), saved = task, self.saved
        token, weights = saved.order.token_N[rows], self._routing_weights_N[rows].unsqueeze(1)
        grad = self.grad_TD.index_select(0, token)
        with torch.enable_grad():
            hidden = saved.hidden_NI[rows].detach().requires_grad_()
            active = self.activation(hidden)
        values = active.detach()
        grad_active = torch.empty_like(values)
        _products(grad.split(sizes), self._w_out_T[experts], grad_active.split(sizes))
        self.weights_N[rows] = torch.linalg.vecdot(grad_active, values)
        _products((values * weights).t().split(sizes, 1), grad.split(sizes), self._each_w_out[experts])
        if saved.b_out_ED is not None and self.b_out is not None:
            expert = saved.order.experts_N[rows]
            self.weights_N[rows] += torch.linalg.vecdot(grad, saved.b_out_ED.index_select(0, expert))
            self.b_out.index_add_(0, expert, grad * weights)
        (grad_hidden,) = torch.autograd.grad(active, hidden, grad_active.mul_(weights))
        x = saved.x_TD.index_select(0, token)
        _products(grad_hidden.t().split(sizes, 1), x.split(sizes), self._each_w_in[experts])
        _products(grad_hidden.split(sizes), self._w_in[experts], self.x_ND[rows].split(sizes))
        if self.b_in is not None:
            self.b_in.index_add_(0, saved.order.experts_N[rows], grad_hidden)


def _products(lefts: Sequence[Tensor], rights: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    for left, right, out in zip(lefts, rights, outs, strict=True):
        torch.mm(left, right, out=out)
