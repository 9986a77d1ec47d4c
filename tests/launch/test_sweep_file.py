"""Sweep files: what they say, and every way in which they are refused."""

from pathlib import Path
from typing import Any

import pytest
from sweep_maker import FIXED, SEARCHED, make_sweep, with_model, with_task, write_sweep

from launch.__main__ import main
from launch.studies import studies_of
from launch.sweep import Model
from launch.sweep_file import load_sweep
from olmoe_parrots.errors import InputError

SWEEPS = Path(__file__).parents[2] / "launch" / "sweeps"
SHIPPED = sorted(path for path in SWEEPS.glob("*.yaml") if "\ntasks:" in path.read_text())  # the other is a grid's


def test_lists_multiply_and_a_dense_model_comes_once(tmp_path: Path) -> None:
    models = make_sweep(tmp_path, models=with_model(SEARCHED, width=[16, 32], experts=[0, 4, 8], top_k=[1, 2])).models
    assert len(models) == 2 * (1 + 2 * 2)
    assert len({model.name for model in models}) == len(models)


def test_options_of_a_task_multiply_and_name_it(tmp_path: Path) -> None:
    options = {"vertices": [8, 10], "mean_degree": 3.0, "balance": [True, False], "max_length": 2}
    tasks = make_sweep(tmp_path, FIXED, tasks=with_task(FIXED, options=options)).tasks
    assert [task.label for task in tasks] == [
        f"shortest_path_vertices{n}_balance{balance}" for n in (8, 10) for balance in (True, False)
    ]
    assert {task.task.max_length for task in tasks} == {2}  # type: ignore[union-attr]


def test_epochs_and_steps(tmp_path: Path) -> None:
    model = Model(16)
    (task,) = make_sweep(tmp_path).tasks
    assert task.steps(model, 160) == 500
    assert task.steps(model, 100) * 32 == pytest.approx(100 * 100, rel=0.01), "each example is seen 100 times"
    training = {"epochs": 100, "batch_size": 32, "min_steps": 400}
    (task,) = make_sweep(tmp_path, tasks=with_task(SEARCHED, training=training)).tasks
    assert (task.steps(model, 100), task.steps(model, 160)) == (400, 500)
    training = {"epochs": 100, "batch_size": 32, "batch_share": 0.03, "micro_batch": 8}
    (task,) = make_sweep(tmp_path, tasks=with_task(SEARCHED, training=training)).tasks
    assert [task.training.batch(size) for size in (100, 1_000, 6_400, 6_500)] == [32, 32, 192, 192]
    assert [task.steps(model, size) for size in (1_000, 6_400)] == [3_125, 3_333]
    (task,) = make_sweep(tmp_path, FIXED).tasks
    assert task.steps(model, 500) == 40


def test_a_model_of_equal_flops_trains_for_as_many_steps_as_spend_them(tmp_path: Path) -> None:
    dense = with_model(FIXED, width=16, experts=0, flops_of={"experts": 8, "top_k": 2})
    sweep = make_sweep(tmp_path, FIXED, models=[*with_model(FIXED, width=16, experts=8), *dense])
    (task,), (moe, twin) = sweep.tasks, sweep.models
    flops = [task.steps(m, 500) * task.shape(m).flops_per_token() for m in (moe, twin)]
    assert task.steps(moe, 500) == 40 < task.steps(twin, 500)
    assert flops[1] == pytest.approx(flops[0], rel=0.5 / 40)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"modles": []}, "modles: there is no such key; did you mean models?"),
        ({"models": []}, "models: the list is empty"),
        ({"models": with_model(SEARCHED, heads=3)}, "the width 16 over the heads"),
        ({"models": with_model(SEARCHED, top_k=9)}, "more than the 8 experts"),
        ({"models": with_model(SEARCHED, width=[])}, "give one or more values"),
        ({"models": with_model(SEARCHED, width=[16, 16])}, "each once"),
        ({"models": with_model(SEARCHED, ffn="square")}, "use one of gated, plain"),
        ({"models": with_model(SEARCHED, flops_of={"top_k": 2})}, "experts: it is missing"),
        ({"models": [*with_model(SEARCHED), *with_model(SEARCHED)]}, "dense_d16_l2_h2 stands twice"),
        ({"tasks": [*with_task(SEARCHED), *with_task(SEARCHED)]}, "another label"),
        ({"models": None}, "models: it is missing"),
        ({"tasks": with_task(SEARCHED, models=[])}, "tasks[0]: models: the list is empty"),
        ({"tasks": with_task(SEARCHED, models=with_model(SEARCHED, top_k=9))}, "more than the 8 experts"),
        ({"tasks": with_task(SEARCHED, task="phone_bok")}, "did you mean phone_book?"),
        ({"tasks": with_task(SEARCHED, sizes=[16])}, "fewer than a batch of 32"),
        ({"tasks": with_task(SEARCHED, sizes={"smallest": 64, "largest": 32})}, "at least 64"),
        ({"tasks": with_task(SEARCHED, sizes={"smallest": 64, "largest": 128, "ratio": 1})}, "more than 1"),
        ({"tasks": with_task(SEARCHED, sizes=[10**6])}, "17,576 of 3 characters exist"),
        ({"tasks": with_task(SEARCHED, options={"vertices": 5})}, "vertices: there is no such key"),
        ({"tasks": with_task(SEARCHED, options={"name_length": "x"})}, "not a whole number"),
        ({"tasks": with_task(SEARCHED, capacity={"recal": 0.9})}, "did you mean recall?"),
        ({"tasks": with_task(SEARCHED, capacity={"recall": 1.5})}, "at most 1"),
        ({"tasks": with_task(SEARCHED, seeds=[-1])}, "at least 0"),
        ({"tasks": with_task(SEARCHED, learning_rates=[0])}, "above 0"),
        ({"tasks": with_task(SEARCHED, training={"batch_size": 32})}, "exactly one of"),
        ({"tasks": with_task(SEARCHED, training={"batch_size": 32, "epochs": 1, "steps": 2})}, "exactly one of"),
        ({"tasks": with_task(SEARCHED, training={"batch_size": 32, "epochs": 1, "micro_batch": 5})}, "a divisor of 32"),
        ({"tasks": with_task(FIXED, capacity={"recall": 0.9})}, "shortest_path has none"),
        ({"tasks": with_task(FIXED, options={"vertices": 10, "mean_degree": 20.0})}, "mean degree of 20 is impossible"),
    ],
)
def test_bad_sweeps_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as caught:
        make_sweep(tmp_path, **changes)
    assert what in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "sweep.yaml"))
    assert not (tmp_path / "output").exists()


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    training = {"steps": 40, "batch_size": 32, "overrides": {"precision.x": 1}}
    sweep = make_sweep(tmp_path, FIXED, tasks=with_task(FIXED, training=training))
    with pytest.raises(InputError, match="precision is no section"):
        studies_of(sweep)[0].rate_jobs()[0].config()


def test_a_task_may_have_models_of_its_own(tmp_path: Path) -> None:
    deeper = with_task(FIXED, models=[{"width": 16, "layers": 3, "heads": 2}])
    sweep = make_sweep(tmp_path, tasks=[*with_task(SEARCHED), *deeper])
    names = [(study.task.label, study.model.name) for study in studies_of(sweep)]
    shared = ["dense_d16_l2_h2", "moe_d16_e8_k2_l2_h2", "dense_d32_l2_h2", "moe_d32_e8_k2_l2_h2"]
    assert names == [*(("phone_book", name) for name in shared), ("shortest_path", "dense_d16_l3_h2")]
    assert [model.name for model in sweep.models] == [*shared, "dense_d16_l3_h2"]
    assert make_sweep(tmp_path, tasks=deeper, models=None).models == sweep.tasks[1].models


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such sweep file"):
        load_sweep(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="not positive"):
        main(["local", str(write_sweep(tmp_path)), "--processes", "0"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert main(["plan", str(path)]) == 0
    told = capsys.readouterr().out
    assert all(model.name in told for model in sweep.models)
    assert all(task.label in told for task in sweep.tasks)
    assert len({study.job(study.first_size, 0.001, 0).digest for study in studies_of(sweep)}) == len(studies_of(sweep))


def test_the_miniature_is_as_large_as_it_has_to_be() -> None:
    sweep = load_sweep(next(path for path in SHIPPED if path.stem == "miniature"))
    widths = {model.width for model in sweep.models}
    experts = {model.experts for model in sweep.models}
    assert len(widths) >= 3
    assert 0 in experts and len(experts) >= 4
    assert {(model.width, model.experts) for model in sweep.models} == {(w, e) for w in widths for e in experts}
    book = next(task for task in sweep.tasks if task.task.name == "phone_book")
    assert len(book.seeds) >= 3 and book.capacity is not None and book.capacity.recall == 0.9
    assert {task.task.name for task in sweep.tasks} == {"phone_book", "shortest_path"}
