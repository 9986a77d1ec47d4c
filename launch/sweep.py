"""What a sweep is: models x tasks, each with its sizes, learning rates, seeds and length of training."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import ShortestPath

ACCURACY = {"phone_book": "accuracy", "shortest_path": "right"}
"""The metric of each task that decides: what a learning rate is chosen by, and what recall is."""


@dataclass(frozen=True)
class FlopsOf:
    """Another model of the same width and layers, whose training FLOPs a model may be given."""

    experts: int
    top_k: int


@dataclass(frozen=True)
class Model:
    """A model of the sweep. `experts` 0 is dense; `intermediate` is the width of FFN or expert over the model's."""

    width: int
    experts: int = 0
    layers: int = 2
    heads: int = 4
    top_k: int = 2
    gated: bool = True
    intermediate: float = 1.0
    flops_of: FlopsOf | None = None

    @property
    def name(self) -> str:
        """Tells the models of any sweep apart, and says what they are."""
        kind = f"moe_d{self.width}_e{self.experts}_k{self.top_k}" if self.experts else f"dense_d{self.width}"
        name = f"{kind}_l{self.layers}_h{self.heads}"
        name += "" if self.gated else "_plain"
        name += "" if self.intermediate == 1 else f"_i{self.intermediate:g}"
        return name + (f"_flops_e{self.flops_of.experts}_k{self.flops_of.top_k}" if self.flops_of else "")

    @property
    def hidden_size(self) -> int:
        """Intermediate width of the FFN or of each expert, in units."""
        return round(self.width * self.intermediate)

    def architecture(self) -> dict[str, Any]:
        """What result rows say of the model."""
        told = {
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
            "experts": self.experts,
            "top_k": self.top_k if self.experts else 0,
            "hidden_size": self.hidden_size,
            "gated": self.gated,
        }
        same = self.flops_of
        return told | ({"flops_of": f"{same.experts} experts, top-{same.top_k}"} if same else {})


@dataclass(frozen=True)
class Capacity:
    """Search for the largest size with at least `recall`, from a guess of the bits that a parameter holds."""

    recall: float
    bits_per_parameter: float


@dataclass(frozen=True)
class Training:
    """How long and how each model is trained. Exactly one of `epochs` and `steps` is given; sizes in sequences."""

    batch_size: int
    epochs: float | None = None
    steps: int | None = None
    min_steps: int = 1
    """With `epochs`: no run is shorter, so that a small book is not lost for want of steps."""
    micro_batch: int | None = None
    batch_share: float = 0.0
    """Of a task's size: the batch where that is larger, so that runs on more examples don't need as many more steps."""
    warmup_share: float = 0.1
    save_every: int = 1000
    keep_checkpoints: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    """Options of the config, dotted where nested, that replace what the sweep writes."""

    def batch(self, size: int) -> int:
        """Rows of a step on `size` examples, whole micro-batches of them."""
        each = self.micro_batch or 1
        return max(self.batch_size, round(self.batch_share * size / each) * each)


@dataclass(frozen=True)
class TaskSpec:
    """A task of the sweep with one choice of options.

    Args:
        label: its name in results, the task's with the options that the sweep varies.
        models: those that train on it.
        sizes: training examples; with `capacity` the ladder that is searched, else each is trained.
        data_seed: of the data of all runs; None for each run's own seed.
    """

    label: str
    models: tuple[Model, ...]
    task: PhoneBook | ShortestPath
    sizes: tuple[int, ...]
    test_size: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    training: Training
    capacity: Capacity | None = None
    data_seed: int | None = None

    @property
    def metric(self) -> str:
        """The metric that decides, as the task's own score calls it."""
        return ACCURACY[self.task.name]

    def shape(self, model: Model) -> ModelShape:
        """A model of this task's vocabulary and row length, for the accounting."""
        return ModelShape(
            d_model=model.width,
            n_layers=model.layers,
            n_heads=model.heads,
            hidden_size=model.hidden_size,
            vocab_size=len(self.task.vocabulary.words),
            sequence_length=self.task.row_length,
            num_experts=model.experts,
            top_k=model.top_k if model.experts else 0,
            gated=model.gated,
        )

    def bits_per_example(self) -> float:
        """What one phone-book entry's number holds, in bits."""
        assert isinstance(self.task, PhoneBook)
        return self.task.number_length * math.log2(len(self.task.number_alphabet))

    def guess(self, model: Model) -> float:
        """The phone-book size at which the search for a model's capacity begins."""
        assert self.capacity is not None
        return self.capacity.bits_per_parameter * self.shape(model).total_params() / self.bits_per_example()

    def steps(self, model: Model, size: int) -> int:
        """Training steps of a model on `size` examples; with `flops_of` those that spend the other's FLOPs."""
        training = self.training
        if training.steps is not None:
            steps = training.steps
        else:
            # by examples: OLMo leaves out what does not fill an epoch's last batch, other examples in each epoch
            by_epochs = round((training.epochs or 0) * size / training.batch(size))
            steps = max(training.min_steps, by_epochs)
        if model.flops_of is None:
            return steps
        other = Model(
            model.width,
            model.flops_of.experts,
            model.layers,
            model.heads,
            model.flops_of.top_k,
            model.gated,
            model.intermediate,
        )
        ratio = self.shape(other).flops_per_token() / self.shape(model).flops_per_token()
        return max(1, round(steps * ratio))

    def data_settings(self, size: int, seed: int) -> dict[str, Any]:
        """What decides the bytes of the data set of a run with that seed."""
        from olmoe_parrots.synthetic.build import settings_of

        seed = seed if self.data_seed is None else self.data_seed
        return settings_of(self.task, size, self.queries(size), seed)

    def queries(self, size: int) -> int:
        """Test queries; a phone-book smaller than that is asked for all of its entries."""
        return min(self.test_size, size) if isinstance(self.task, PhoneBook) else self.test_size


@dataclass(frozen=True)
class Sweep:
    """A sweep as loaded. `output` holds data, configs, runs and results.jsonl."""

    name: str
    output: Path
    tasks: tuple[TaskSpec, ...]

    @property
    def models(self) -> tuple[Model, ...]:
        """Those of all tasks, each once."""
        return tuple(dict.fromkeys(model for task in self.tasks for model in task.models))

    @property
    def results(self) -> Path:
        """The results file."""
        return self.output / "results.jsonl"


def data_name(settings: dict[str, Any]) -> str:
    """The folder of a data set: readable, and another one for other settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{settings['task']}_{settings['size']}_s{settings['seed']}_{digest}"
