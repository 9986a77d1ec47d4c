"""The MegaBlocks package as one backend of the experts, on any machine, compiled extension or not.

MegaBlocks is optional (`make megablocks`) and imported only when asked for. What its wheel lacks without a CUDA
compiler comes from `megablocks_ops`; without CUDA its Triton kernels run in Triton's interpreter, which is slow and
meant for tests. Shape legend: T tokens, D model width, E experts, K experts per token, H hidden width of an expert.
"""

import importlib
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.func import functional_call

from olmoe_parrots.moe import megablocks_ops

INSTALL_HINT = "run `make megablocks`"
SUPPORTED_VERSION = "0.10"
_PACKAGES = ("megablocks", "stk", "triton")
# MegaBlocks takes a logarithm of hidden * experts // 128 on construction, in the grouped form for nothing
_SMALLEST_HIDDEN = 128
# functional_call swaps the parameters of a shared module for the length of a call
_ONE_AT_A_TIME = threading.Lock()

Activation = Callable[[Tensor], Tensor]


def is_available() -> bool:
    """Whether MegaBlocks and what it imports are installed; imports none of it."""
    return not _missing_packages()


@lru_cache(maxsize=1)
def load_megablocks() -> ModuleType:
    """Import MegaBlocks, with stand-ins for each compiled module that is absent or has no CUDA to run on.

    Without CUDA, sets TRITON_INTERPRET=1 in the environment; call it before anything imports Triton (torch.compile
    does). Raises ImportError with one line that says what to do.
    """
    _check_packages()
    _prepare_triton()
    stand_ins = []
    if not _has_compiled("megablocks_ops"):
        stand_ins.append(megablocks_ops.make_megablocks_ops())
    if not _has_compiled("grouped_gemm"):
        stand_ins.append(megablocks_ops.make_grouped_gemm())
    with megablocks_ops.importable(stand_ins):
        package = importlib.import_module("megablocks")
    if not importlib.import_module("megablocks.grouped_gemm_util").grouped_gemm_is_available():
        raise ImportError("megablocks was imported without grouped_gemm before: call load_megablocks() first")
    if _is_interpreting():
        _take_first_configs()
    return package


def megablocks_experts(
    x_TD: Tensor,
    expert_weights_TK: Tensor,
    expert_indices_TK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    *,
    activation: Activation,
    gated: bool,
    num_experts: int,
    top_k: int,
) -> Tensor:
    """Run MegaBlocks' dropless grouped experts on our weights and routing: (T, D), differentiable but in the indices.

    `w_in` is (E, H, D); when `gated`, (E, 2H, D), whose first half is the up projection and whose second half goes
    through `activation`. `w_out` is (E, H, D). The stand-ins copy no weight. Tokens and weights share one dtype and the
    caller turns autocast off, as MegaBlocks' operators each take it differently. Its kernels round to float32 at best.
    """
    load_megablocks()
    _check_inputs(x_TD, expert_weights_TK, expert_indices_TK, w_in, w_out, gated, num_experts, top_k)
    module = _experts_module(w_out.shape[2], w_out.shape[1], num_experts, top_k, gated, activation)
    # the second argument, the router's scores, feeds only the load-balancing state, which stays unused
    inputs = (x_TD.contiguous(), None, expert_weights_TK, expert_indices_TK)
    with _ONE_AT_A_TIME:
        return functional_call(module, _megablocks_weights(w_in, w_out, gated), inputs, strict=True)


def _megablocks_weights(w_in: Tensor, w_out: Tensor, gated: bool) -> dict[str, Tensor]:
    """Our weights under MegaBlocks' names: act(x @ w1) * (x @ v1) @ w2.

    MegaBlocks views its flat (E*H, D) parameters as (E, H, D) on use, so that three dimensions pass unchanged and the
    halves of a gated `w_in` need no copy, except for a compiled grouped_gemm.
    """
    if not gated:
        return {"mlp.w1": w_in, "mlp.w2": w_out}
    up, gate = w_in.chunk(2, dim=1)
    if _has_compiled("grouped_gemm"):
        up, gate = up.contiguous(), gate.contiguous()
    return {"mlp.w1": gate, "mlp.v1": up, "mlp.w2": w_out}


@lru_cache(maxsize=64)
def _experts_module(
    width: int, hidden: int, num_experts: int, top_k: int, gated: bool, activation: Activation
) -> torch.nn.Module:
    """A ParallelDroplessMLP without storage; it fits any dtype and device, as its parameters are always replaced."""
    arguments = importlib.import_module("megablocks.layers.arguments").Arguments(
        hidden_size=width,
        ffn_hidden_size=max(hidden, _SMALLEST_HIDDEN),
        bias=False,
        return_bias=False,
        activation_fn=activation,
        moe_num_experts=num_experts,
        moe_top_k=top_k,
        moe_loss_weight=0.0,
        mlp_type="glu" if gated else "mlp",
        mlp_impl="grouped",
        fp16=False,
        device=torch.device("meta"),
    )
    return importlib.import_module("megablocks.layers.dmoe").ParallelDroplessMLP(arguments).eval()


def _check_inputs(
    x_TD: Tensor,
    expert_weights_TK: Tensor,
    expert_indices_TK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    gated: bool,
    num_experts: int,
    top_k: int,
) -> None:
    tokens, width = x_TD.shape
    hidden = w_out.shape[1]
    expected = {
        "expert_weights": (expert_weights_TK, (tokens, top_k)),
        "expert_indices": (expert_indices_TK, (tokens, top_k)),
        "w_in": (w_in, (num_experts, 2 * hidden if gated else hidden, width)),
        "w_out": (w_out, (num_experts, hidden, width)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if not x_TD.dtype == w_in.dtype == w_out.dtype:
        raise ValueError(f"tokens and weights must share a dtype, got {x_TD.dtype}, {w_in.dtype}, {w_out.dtype}")
    if not (x_TD.is_cuda or _is_interpreting()):
        raise ValueError(f"MegaBlocks runs on CUDA here, got a tensor on {x_TD.device}: move it or use another backend")


def _missing_packages() -> list[str]:
    return [name for name in _PACKAGES if find_spec(name) is None]


def _check_packages() -> None:
    if missing := _missing_packages():
        raise ImportError(f"MegaBlocks backend: {', '.join(missing)} not installed: {INSTALL_HINT}")
    try:
        found = version("megablocks")
    except PackageNotFoundError:
        found = "of unknown version"
    if found.split(".")[:2] != SUPPORTED_VERSION.split("."):
        raise ImportError(f"megablocks {found} is not supported, only {SUPPORTED_VERSION}.x: {INSTALL_HINT}")


@lru_cache(maxsize=2)
def _has_compiled(name: str) -> bool:
    return torch.cuda.is_available() and find_spec(name) is not None


def _prepare_triton() -> None:
    if torch.cuda.is_available():
        return
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not _is_interpreting():
        raise ImportError("triton was imported without TRITON_INTERPRET=1, which it needs without CUDA: set it first")


def _is_interpreting() -> bool:
    triton = importlib.import_module("triton")
    # the choice is made once, as triton is imported, for its own library functions too
    return not isinstance(triton.language.sum, triton.JITFunction)


def _take_first_configs() -> None:
    """Keep one configuration a kernel: there is no device to time them on."""
    autotuner = importlib.import_module("triton.runtime").Autotuner
    for name in ("megablocks.backend.kernels", "stk.backend.triton_kernels"):
        for kernel in vars(importlib.import_module(name)).values():
            if isinstance(kernel, autotuner):
                kernel.configs = kernel.configs[:1]
