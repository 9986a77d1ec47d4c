"""The experts' feed-forward networks, computed by one of several backends behind one interface.

Shapes in names: T tokens, D model width, H intermediate width, I input projection width (H, or 2·H when gated),
E experts, K experts per token, N = T·K assignments.

An expert computes ``activation(x @ w_in[e].T + b_in[e]) @ w_out[e] + b_out[e]``. A gated expert has an input
projection twice as wide, whose halves are value and gate: it differs from a plain one in that alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .megablocks import is_available as megablocks_is_available
from .megablocks import megablocks_experts
from .ordering import order_by_expert
from .threaded import ThreadedExperts

GROUPED_MM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_MM_ALIGNMENT = 16  # bytes, of every row


class Activation(NamedTuple):
    """From the input projection's width I to the intermediate width H."""

    pointwise: Callable[[Tensor], Tensor]
    gated: bool = False
    """Whether the input is value and gate, in the order of OLMo's SwiGLU: ``pointwise(gate) * value``."""

    def __call__(self, hidden: Tensor) -> Tensor:
        if not self.gated:
            return self.pointwise(hidden)
        value, gate = hidden.chunk(2, dim=-1)
        return self.pointwise(gate) * value


class ExpertWeights(NamedTuple):
    """The weights of all experts of a layer, in the type they are computed in."""

    w_in_EID: Tensor
    w_out_EHD: Tensor
    b_in_EI: Tensor | None = None
    b_out_ED: Tensor | None = None


class ExpertLinear(nn.Linear):
    """E linear maps held as one weight of (E, rows, D).

    A subclass of ``nn.Linear`` so that OLMo's ``get_param_groups`` (olmo/optim.py:829), which asserts that it knows
    every parameter, files ``weight`` under weight decay and ``bias`` with the biases.
    """

    def __init__(
        self,
        num_experts: int,
        rows: int,
        d_model: int,
        bias_width: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = d_model, rows
        self.weight = nn.Parameter(torch.empty(num_experts, rows, d_model, device=device))
        if bias_width is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty(num_experts, bias_width, device=device))

    def forward(self, input: Tensor) -> Tensor:
        raise TypeError("the weights of the experts are used by a backend, not called")

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, bias={self.bias is not None}"


def loop_experts(
    x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor, experts: ExpertWeights, activation: Activation
) -> Tensor:
    """One expert after the other, on the tokens it was chosen for: the plain reference, on any device and type."""
    out_TD = torch.zeros_like(x_TD)
    # unbind, not indexing: the gradient of w[e] would be a whole zero tensor per expert
    w_in, w_out = experts.w_in_EID.unbind(0), experts.w_out_EHD.unbind(0)
    for e in range(len(w_in)):
        tokens, slots = torch.where(indices_TK == e)
        hidden = x_TD[tokens] @ w_in[e].T
        if experts.b_in_EI is not None:
            hidden = hidden + experts.b_in_EI[e]
        y = activation(hidden) @ w_out[e]
        if experts.b_out_ED is not None:
            y = y + experts.b_out_ED[e]
        out_TD = out_TD.index_add(0, tokens, y * weights_TK[tokens, slots].unsqueeze(-1))
    return out_TD


def grouped_experts(
    x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor, experts: ExpertWeights, activation: Activation
) -> Tensor:
    """Assignments sorted by expert, then one grouped matrix product for each of the two projections."""
    order = order_by_expert(indices_TK, experts.w_in_EID.shape[0])
    hidden_NI = _grouped_mm(x_TD.index_select(0, order.token_N), experts.w_in_EID.transpose(1, 2), offs=order.ends_E)
    if experts.b_in_EI is not None:
        hidden_NI = hidden_NI + experts.b_in_EI.index_select(0, order.experts_N)
    y_ND = _grouped_mm(activation(hidden_NI), experts.w_out_EHD, offs=order.ends_E)
    if experts.b_out_ED is not None:
        y_ND = y_ND + experts.b_out_ED.index_select(0, order.experts_N)
    # back to token order by the inverse permutation: a gather, so the sum over K has one order on every device
    y_TKD = y_ND.index_select(0, order.place_TK.flatten()).view(*indices_TK.shape, -1)
    return (y_TKD * weights_TK.unsqueeze(-1)).sum(dim=1)


def _grouped_mm(a_ND: Tensor, b_EDI: Tensor, offs: Tensor) -> Tensor:
    # torch's shape rule for compilation takes bfloat16 alone, so other types step out of the compiled graph
    if torch.compiler.is_compiling() and a_ND.dtype != torch.bfloat16:
        return _uncompiled_grouped_mm(a_ND, b_EDI, offs)
    return torch.nn.functional.grouped_mm(a_ND, b_EDI, offs=offs)


@torch.compiler.disable
def _uncompiled_grouped_mm(a_ND: Tensor, b_EDI: Tensor, offs: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(a_ND, b_EDI, offs=offs)


@torch.compiler.disable
def threaded_experts(
    x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor, experts: ExpertWeights, activation: Activation
) -> Tensor:
    """On the CPU, each expert by one thread, with the backward pass of :class:`~.threaded.ThreadedExperts`."""
    weights = (experts.w_in_EID, experts.w_out_EHD, experts.b_in_EI, experts.b_out_ED)
    return ThreadedExperts.apply(x_TD, weights_TK, indices_TK, *weights, activation)


def _megablocks_experts(
    x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor, experts: ExpertWeights, activation: Activation
) -> Tensor:
    return megablocks_experts(
        x_TD,
        weights_TK,
        indices_TK,
        experts.w_in_EID,
        experts.w_out_EHD,
        activation=activation.pointwise,
        gated=activation.gated,
        num_experts=experts.w_in_EID.shape[0],
        top_k=indices_TK.shape[1],
    )


BACKENDS = {
    "loop": loop_experts,
    "threaded": threaded_experts,
    "grouped": grouped_experts,
    "megablocks": _megablocks_experts,
}


def why_not(backend: str, x_TD: Tensor, experts: ExpertWeights) -> str | None:
    """Why a backend cannot run on these inputs, in words, or ``None`` when it can."""
    if backend == "threaded":
        return None if x_TD.device.type == "cpu" else f"threads are the CPU's, and the model is on {x_TD.device.type}"
    if backend == "grouped":
        return _why_not_grouped(x_TD, experts)
    if backend == "megablocks":
        if experts.b_in_EI is not None:
            return "MegaBlocks' experts have no biases (set include_bias: false)"
        if not megablocks_is_available():
            return "MegaBlocks is not installed (make megablocks)"
        if x_TD.dtype == torch.float64:
            return "MegaBlocks' kernels do not take float64"
    return None


def _why_not_grouped(x_TD: Tensor, experts: ExpertWeights) -> str | None:
    # present on the CPU before 2.11, but unreliable there
    oldest = (2, 10) if x_TD.is_cuda else (2, 11)
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < oldest:
        return f"torch {torch.__version__} has no grouped_mm to rely on (2.11 has)"
    if x_TD.dtype not in GROUPED_MM_DTYPES:
        return f"grouped_mm does not take {x_TD.dtype}"
    for width in (x_TD.shape[-1], experts.w_out_EHD.shape[1]):
        if width * x_TD.element_size() % GROUPED_MM_ALIGNMENT:
            return f"grouped_mm needs rows of a multiple of {GROUPED_MM_ALIGNMENT} bytes, a width is {width}"
    return None


def choose_backend(name: str, x_TD: Tensor, experts: ExpertWeights) -> str:
    """The backend that runs: the one asked for, or for ``auto`` the first that can: on the CPU threaded, but grouped
    under ``torch.compile``, which does not look into threads; on CUDA grouped, then MegaBlocks; last loop.

    :raises ValueError: when a backend asked for by name cannot run, with the reason.
    """
    if name != "auto":
        if reason := why_not(name, x_TD, experts):
            raise ValueError(f"moe_mlp_impl={name} cannot run: {reason}")
        return name
    if x_TD.device.type == "cpu" and not torch.compiler.is_compiling():
        return "threaded"
    candidates = ("grouped", "megablocks") if x_TD.is_cuda else ("grouped",)
    return next((backend for backend in candidates if why_not(backend, x_TD, experts) is None), "loop")
