"""From a sweep's YAML file to a Sweep: every key checked, every refusal naming file, key, value and remedy.

A list where one value is usual stands for each of its values: `width: [32, 64]` and `experts: [0, 8]` are four models,
and options of a task multiply in the same way.
"""

from __future__ import annotations

import itertools
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from launch.capacity import ladder
from launch.sweep import ACCURACY, Capacity, FlopsOf, Model, Sweep, TaskSpec, Training
from olmoe_parrots.errors import InputError
from olmoe_parrots.strict_yaml import Section, read_yaml
from olmoe_parrots.synthetic.build import TASKS
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import ShortestPath

_TASK_KEYS = {field.name for field in fields(TaskSpec)} | {"options"}


def load_sweep(path: Path, output: Path | None = None) -> Sweep:
    """Read a sweep file.

    Args:
        output: in place of the file's own; a relative one is below the working directory.

    Raises InputError for anything that is not as docs/sweeps.md describes, and for data that cannot be generated.
    """
    if not path.is_file():
        raise InputError(path, "there is no such sweep file", "name one, such as launch/sweeps/miniature.yaml")
    section = Section(read_yaml(path), str(path))
    section.refuse_unknown({field.name for field in fields(Sweep)} | {"models"})
    name = section.text("name", path.stem)
    entries = section.sections("tasks")
    shared = None if all("models" in entry.values for entry in entries) else _models(section)
    tasks = tuple(task for entry in entries for task in _tasks(entry, shared))
    _refuse_twice(section, "tasks", [task.label for task in tasks], "give one of them another label")
    for task in tasks:
        _check_data(task, str(path))
    return Sweep(name, output or Path(section.text("output", f"runs/{name}")), tasks)


def _refuse_twice(section: Section, key: str, names: list[str], remedy: str) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(section.where, f"{key}: {twice} stands twice", remedy)


def _models(section: Section) -> tuple[Model, ...]:
    """Those of a section's `models`."""
    models = tuple(model for entry in section.sections("models") for model in _products(entry))
    _refuse_twice(section, "models", [model.name for model in models], "name each once")
    return models


def _products(section: Section) -> list[Model]:
    section.refuse_unknown({field.name for field in fields(Model)} - {"gated"} | {"ffn"})
    if "width" not in section.values:
        raise InputError(section.where, "width: it is missing", "give one width or a list of them")
    choices: dict[str, tuple[Any, ...]] = {
        "width": section.integers("width", (), least=1),
        "experts": section.integers("experts", (0,), least=0),
        "layers": section.integers("layers", (Model.layers,), least=1),
        "heads": section.integers("heads", (Model.heads,), least=1),
        "top_k": section.integers("top_k", (Model.top_k,), least=1),
        "intermediate": section.numbers("intermediate", (Model.intermediate,)),
    }
    gated = section.choice("ffn", ("gated", "plain"), "gated") == "gated"
    flops_of = _flops_of(section)
    models = []
    for values in itertools.product(*choices.values()):
        model = Model(**dict(zip(choices, values, strict=True)), gated=gated, flops_of=flops_of)
        _check_model(model, section)
        # a dense model has no top-k: one of the list is enough
        models.append(model if model.experts else replace(model, top_k=Model.top_k))
    return list(dict.fromkeys(models))


def _flops_of(section: Section) -> FlopsOf | None:
    if section.values.get("flops_of") is None:
        return None
    other = section.section("flops_of")
    other.refuse_unknown({"experts", "top_k"})
    experts, top_k = other.integer("experts", None, least=0), other.integer("top_k", Model.top_k, least=1)
    if experts is None or top_k is None:
        raise InputError(other.where, "experts: it is missing", "give the number of experts of the other model")
    if experts and top_k > experts:
        other.refuse("top_k", top_k, f"give 1 to {experts}")
    return FlopsOf(experts, top_k)


def _check_model(model: Model, section: Section) -> None:
    if model.width % model.heads or model.width // model.heads % 2:
        section.refuse("heads", model.heads, f"the width {model.width} over the heads has to be a whole, even number")
    if model.experts and model.top_k > model.experts:
        section.refuse("top_k", model.top_k, f"a token cannot visit more than the {model.experts} experts")
    if model.hidden_size < 1:
        section.refuse("intermediate", model.intermediate, "give more")


def _tasks(section: Section, shared: tuple[Model, ...] | None) -> list[TaskSpec]:
    """A task with each choice of its options, for its own models or the shared ones."""
    section.refuse_unknown(_TASK_KEYS)
    kind = section.choice("task", tuple(ACCURACY), "")
    capacity = _capacity(section, kind)
    training = _training(section.section("training"))
    common: dict[str, Any] = {
        "sizes": _sizes(section, capacity is not None),
        "test_size": section.integer("test_size", 1000, least=2),
        "learning_rates": section.numbers("learning_rates", (1e-3,)),
        "seeds": section.integers("seeds", (0,), least=0),
        "training": training,
        "capacity": capacity,
        "data_seed": section.integer("data_seed", None, least=0),
    }
    if training.batch_size > min(common["sizes"]):
        what = f"sizes: {min(common['sizes'])} examples are fewer than a batch of {training.batch_size}"
        raise InputError(section.where, what, "give larger sizes or a smaller training.batch_size")
    label = section.text("label", kind)
    models = _models(section) if "models" in section.values or shared is None else shared
    return [
        TaskSpec(label + suffix, models, task, **common) for suffix, task in _options(section.section("options"), kind)
    ]


def _options(section: Section, kind: str) -> list[tuple[str, PhoneBook | ShortestPath]]:
    """Every choice of the task's options, with what the label says of those that vary."""
    task = TASKS[kind]
    usual = {field.name: field.default for field in fields(task) if field.default is not MISSING}
    section.refuse_unknown(usual)
    choices = {key: value if isinstance(value, list) else [value] for key, value in section.values.items()}
    for key, values in choices.items():
        if not values:
            section.refuse(key, values, "give at least one value")
        for value in values:
            _check_option(section, key, value, usual[key])
    varied = [key for key, values in choices.items() if len(values) > 1]
    made = []
    for chosen in itertools.product(*choices.values()):
        options = dict(zip(choices, chosen, strict=True))
        suffix = "".join(f"_{key}{options[key]}" for key in varied)
        made.append((suffix, task(**options)))
    return made


def _check_option(section: Section, key: str, value: Any, usual: Any) -> None:
    one = Section({key: value}, section.where)
    if isinstance(usual, bool):
        one.boolean(key, usual)
    elif isinstance(usual, str):
        one.text(key, usual)
    elif isinstance(usual, float):
        one.number(key, usual)
    elif value is not None or isinstance(usual, int):
        one.integer(key, 1, least=1)


def _capacity(section: Section, kind: str) -> Capacity | None:
    if section.values.get("capacity") is None:
        return None
    if kind != "phone_book":
        raise InputError(section.where, f"capacity: {kind} has none", "leave it out, it is phone_book's")
    capacity = section.section("capacity")
    capacity.refuse_unknown({field.name for field in fields(Capacity)})
    return Capacity(capacity.number("recall", 0.9, most=1.0), capacity.number("bits_per_parameter", 1.0))


def _sizes(section: Section, searched: bool) -> tuple[int, ...]:
    if not isinstance(section.values.get("sizes"), dict):
        if "sizes" not in section.values:
            raise InputError(section.where, "sizes: it is missing", "give sizes, or smallest, largest and ratio")
        sizes = section.integers("sizes", (), least=1)
        return tuple(sorted(sizes)) if searched else sizes
    steps = section.section("sizes")
    steps.refuse_unknown({"smallest", "largest", "ratio"})
    smallest, largest = steps.integer("smallest", None, least=1), steps.integer("largest", None, least=1)
    ratio = steps.number("ratio", 1.25)
    if smallest is None or largest is None:
        raise InputError(steps.where, "smallest or largest is missing", "give both")
    if largest < smallest:
        steps.refuse("largest", largest, f"give at least {smallest}, the smallest")
    if ratio <= 1:
        steps.refuse("ratio", ratio, "give more than 1")
    return ladder(smallest, largest, ratio)


def _training(section: Section) -> Training:
    section.refuse_unknown({field.name for field in fields(Training)})
    epochs, steps = section.number("epochs", None), section.integer("steps", None, least=1)
    if (epochs is None) == (steps is None):
        raise InputError(section.where, "it names both or neither of epochs and steps", "give exactly one of them")
    batch_size = section.integer("batch_size", None, least=1)
    if batch_size is None:
        raise InputError(section.where, "batch_size: it is missing", "give the sequences of a step")
    micro_batch = section.integer("micro_batch", None, least=1)
    if micro_batch is not None and batch_size % micro_batch:
        section.refuse("micro_batch", micro_batch, f"give a divisor of {batch_size}, the batch")
    return Training(
        batch_size,
        epochs,
        steps,
        section.integer("min_steps", Training.min_steps, least=1) or 1,
        micro_batch,
        section.number("batch_share", Training.batch_share, most=1.0, positive=False),
        section.number("warmup_share", Training.warmup_share, most=1.0, positive=False),
        section.integer("save_every", Training.save_every, least=1) or Training.save_every,
        section.boolean("keep_checkpoints", Training.keep_checkpoints),
        section.section("overrides").values,
    )


def _check_data(task: TaskSpec, where: str) -> None:
    """Refuse data that cannot be generated, by the task's own words, before anything is."""
    try:
        for size in {min(task.sizes), max(task.sizes)}:
            task.task.check(size, task.queries(size), 0)
    except InputError as error:
        option = error.where.replace("--", "").replace("-", "_")
        raise InputError(f"{where}: tasks[{task.label}], {option}", error.what, error.remedy) from None
