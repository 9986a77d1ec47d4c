"""How the experts' rows are shared out over threads, and that threads change nothing."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from olmoe_parrots.moe.threaded import ROWS_AT_LEAST, ThreadedExperts, make_tasks
from olmoe_parrots.moe.threads import share_out


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "sizes", [[0], [5], [0, 0, 700, 0], [100] * 16, [300] * 4, [1] * 1000, [4000, 3, 3, 3], [0, 300, 0, 300, 0]]
)
def test_tasks_hold_every_expert_and_row_once(sizes: list[int]) -> None:
    tasks = make_tasks(sizes)
    in_order = sorted(tasks, key=lambda task: task.experts.start)
    assert [e for task in in_order for e in range(len(sizes))[task.experts]] == list(range(len(sizes)))
    assert [n for task in in_order for n in range(sum(sizes))[task.rows]] == list(range(sum(sizes)))
    assert [size for task in in_order for size in task.sizes] == sizes
    assert [task.total for task in tasks] == sorted((sum(task.sizes) for task in tasks), reverse=True)
    for task in in_order[:-1]:
        assert task.total >= ROWS_AT_LEAST > task.total - task.sizes[-1], "as few experts as hold enough rows"


def run(assignments: list[int], width: int = 8) -> list[Tensor]:
    """Output and gradients of experts with as many tokens as said, one choice each."""
    torch.manual_seed(0)
    experts = len(assignments)
    indices = torch.repeat_interleave(torch.arange(experts), torch.tensor(assignments))
    indices = indices[torch.randperm(len(indices))].unsqueeze(1)
    inputs = [
        torch.randn(len(indices), width),
        torch.rand(len(indices), 1),
        torch.randn(experts, width, width),
        torch.randn(experts, width, width),
    ]
    x, weights, w_in, w_out = (tensor.requires_grad_() for tensor in inputs)
    output = ThreadedExperts.apply(x, weights, indices, w_in, w_out, None, None, F.gelu)
    return [output, *torch.autograd.grad(output, (x, weights, w_in, w_out), torch.randn_like(output))]


@pytest.mark.parametrize("assignments", [[300, 300, 300, 300], [2000, 10, 0, 10], [40] * 50, [0, 900]])
def test_threads_give_what_one_thread_gives(assignments: list[int], three_threads: None) -> None:
    """With an expert beyond a thread's share, and with many small ones."""
    found = run(assignments)
    torch.set_num_threads(1)
    for actual, expected in zip(found, run(assignments), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_work_is_shared_out_and_torchs_threads_stay_as_they_were(three_threads: None) -> None:
    inside: list[tuple[str, int, bool]] = []
    together = threading.Barrier(3, timeout=60)

    def work(task: int) -> None:
        if task < 3:
            together.wait()  # three at a time, or never
        inside.append((threading.current_thread().name, torch.get_num_threads(), torch.is_grad_enabled()))

    share_out(work, range(7))
    assert len(inside) == 7
    assert len({name for name, _, _ in inside}) == 3
    assert {(threads, grad) for _, threads, grad in inside} == {(1, False)}
    assert torch.get_num_threads() == 3 and torch.is_grad_enabled()
    found: list[int] = []
    new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert found == [3], "threads that begin later have as many as before"


def test_an_error_in_a_thread_is_raised(three_threads: None) -> None:
    def work(task: int) -> None:
        if task == 4:
            raise ZeroDivisionError(f"task {task}")

    with pytest.raises(ZeroDivisionError, match="task 4"):
        share_out(work, range(7))
    share_out(lambda task: None, range(7))


def test_threads_work_after_a_fork(three_threads: None) -> None:
    """As `launch local` starts runs from one process that has imported what they need."""
    share_out(lambda task: None, range(3))
    child = os.fork()
    if not child:
        done: list[int] = []
        share_out(done.append, range(3))
        os._exit(0 if sorted(done) == [0, 1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_in_inference_mode(three_threads: None) -> None:
    x, w, indices = torch.randn(900, 8), torch.randn(3, 8, 8), torch.arange(900).remainder(3).unsqueeze(1)
    weights = torch.rand(900, 1)
    expected = ThreadedExperts.apply(x, weights, indices, w, w, None, None, F.gelu)
    with torch.inference_mode():
        assert torch.equal(ThreadedExperts.apply(x, weights, indices, w, w, None, None, F.gelu), expected)


def test_a_second_derivative_is_refused() -> None:
    x, w = torch.randn(4, 8, requires_grad=True), torch.randn(2, 8, 8)
    indices = torch.tensor([[0], [1], [1], [0]])
    output = ThreadedExperts.apply(x, torch.ones(4, 1), indices, w, w, None, None, F.gelu)
    weights = torch.ones(4, 8, requires_grad=True)  # else the gradient needs none, and nothing asks for a second one
    (gradient,) = torch.autograd.grad(output, x, weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
