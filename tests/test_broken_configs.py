"""500 shipped configs, each broken in one random place: each is refused in one line, before a model is built."""

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, write_shards

from olmoe_parrots import train
from olmoe_parrots.errors import InputError
from olmoe_parrots.preflight_values import CHOICES, NOT_NEGATIVE, RANGES, check_values

SHIPPED = ("quickstart_moe", "quickstart_dense", "moe_d256_e8", "dense_d512")
COUNT = 500
TEXTS = {"run_name", "save_folder", "data_folder", "tokenizer.identifier", "evaluators.0.label", "max_duration"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Shipped configs over data that is there, in batches that it suffices for."""
    folder = tmp_path_factory.mktemp("broken")
    made = []
    for name in SHIPPED:
        config = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
        config["model"]["max_sequence_length"] = 64
        vocabulary = config["model"]["vocab_size"]
        if not (folder / str(vocabulary)).exists():
            write_shards(folder / str(vocabulary), tokens=4096, vocabulary=vocabulary)
        config |= {"data_folder": str(folder / str(vocabulary)), "save_folder": str(folder / "run"), "dry_run": True}
        config |= {"global_train_batch_size": 8, "device_train_microbatch_size": 8}
        config["model"] |= {"eos_token_id": 2, "pad_token_id": 0}
        config["evaluators"] = config["evaluators"][:1]
        made.append(config)
    return made


def places(config: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, (*before, key))


def parent(config: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        config = config[key]
    return config


def misspell(config: dict[str, Any], place: tuple[Any, ...], chance: random.Random) -> bool:
    above, key = parent(config, place), place[-1]
    if not isinstance(key, str) or place[:-1] == ("evaluators", 0, "data", "datasets"):
        return False
    at = chance.randrange(len(key))
    above[key[:at] + "xq" + key[at + 1 :]] = above.pop(key)
    return True


def mistype(config: dict[str, Any], place: tuple[Any, ...], chance: random.Random) -> bool:
    """Another type than any that the option takes."""
    value = parent(config, place)[place[-1]]
    if isinstance(value, dict | list):
        wrong = chance.choice(["many", -3.5, True])
    elif ".".join(map(str, place)) in TEXTS or value is None:
        wrong = [{"a": 1}]
    else:
        wrong = chance.choice(["manyfold", [1, 2], {"a": 1}])
    parent(config, place)[place[-1]] = wrong
    return place[-1] != "paths" and place[-2:-1] != ("datasets",)


def go_below(config: dict[str, Any], place: tuple[Any, ...], chance: random.Random) -> bool:
    """A number that lies below all that the option takes, or none at all."""
    value = parent(config, place)[place[-1]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    parent(config, place)[place[-1]] = chance.choice(
        [-7, float("-inf")] if isinstance(value, int) else [-7.5, float("nan")]
    )
    return True


BREAKS: list[Callable[..., bool]] = [misspell, mistype, go_below]


def tear(text: str, chance: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    lines.insert(chance.randrange(1, len(lines)), chance.choice(["  - [\n", "\t x: 1\n", "a: b: c\n", '"\n', "{\n"]))
    return "".join(lines)


def broken(bases: list[dict[str, Any]], chance: random.Random) -> tuple[str, str]:
    """The text of a broken config, and what was done to it."""
    while True:
        config = copy.deepcopy(chance.choice(bases))
        if chance.random() < 0.1:
            return tear(yaml.safe_dump(config), chance), "tear"
        place, kind = chance.choice(list(places(config))), chance.choice(BREAKS)
        if kind(config, place, chance):
            return yaml.safe_dump(config), f"{kind.__name__} {'.'.join(map(str, place))}"


def test_the_unbroken_ones_are_accepted(bases: list[dict[str, Any]], tmp_path: Path) -> None:
    for config in bases:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        cfg = train._load(str(path), [])
        assert train.check(cfg, str(path), 1) is None


@pytest.mark.slow
def test_500_broken_configs_are_refused_in_one_line(bases: list[dict[str, Any]], tmp_path: Path) -> None:
    chance, kinds, wrong = random.Random(0), Counter[str](), []
    for number in range(COUNT):
        text, what = broken(bases, chance)
        path = tmp_path / "config.yaml"
        path.write_text(text)
        try:
            train.main([str(path)])
        except InputError as error:
            kinds[what.split()[0]] += 1
            if "\n" in str(error) or (str(path) not in str(error) and "/broken" not in str(error)):
                wrong.append(f"{number}, {what}: {error}")
        except BaseException as error:
            wrong.append(f"{number}, {what}: {error!r}")
        else:
            wrong.append(f"{number}, {what}: a run was started")
    assert wrong == []
    assert sum(kinds.values()) == COUNT and min(kinds.values()) > 20 and len(kinds) == 4


def test_every_range_and_choice_is_of_an_option_and_looked_at(bases: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(bases[0]))
    for allowed, options in RANGES.items():
        for option in options:
            cfg = train._load(str(path), [])
            above, _, name = option.rpartition(".")
            section = getattr(cfg, above) if above else cfg
            value = allowed.least - 1 if not allowed.above else allowed.least
            setattr(section, name, (value, value) if name == "betas" else value)
            with pytest.raises(InputError, match=name):
                check_values(cfg, "config.yaml")
    for option in CHOICES:
        section, _, name = option.partition(".")
        cfg = train._load(str(path), [])
        setattr(getattr(cfg, section), name, "another")
        with pytest.raises(InputError, match=f"{option}=another"):
            check_values(cfg, "config.yaml")
    assert NOT_NEGATIVE.holds(0) and not NOT_NEGATIVE.holds(float("inf")) and not NOT_NEGATIVE.holds(float("nan"))
