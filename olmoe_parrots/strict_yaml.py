"""Strict reading of a YAML file: duplicate keys, unknown keys and wrong types are refused by name."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, overload

from olmoe_parrots.errors import InputError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises InputError for a file that is not YAML or names a key twice.

    As in YAML 1.2, only true and false are booleans (`mode: off` is a string), 1e-3 is a number, dates are strings.
    """
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_loader(yaml))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"it cannot be read ({error})", "give a readable file in UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(path, f"it is not valid YAML ({error})", "mend the file") from None
    except RecursionError:
        raise InputError(path, "it is nested too deeply", "mend the file") from None


def _loader(yaml: Any) -> Any:
    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, (str, int, float, bool)) or key in seen:
                    what = f"the key {key!r} stands twice" if isinstance(key, str) else f"{key!r} cannot be a key"
                    raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep)

    dropped = {"tag:yaml.org,2002:" + kind for kind in ("bool", "timestamp", "float")}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = re.compile(r"[-+]?(\d[\d_]*\.[\d_]*|\.\d+|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.inf$|\.nan$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), list("tf"))
    return Loader


class Section:
    """One mapping of the file: `values` and, for messages, `where` it stands.

    Each getter returns the value of a key, or `default` where the key is absent or null; a getter called without a
    default needs the key. All raise InputError naming file, key and value.
    """

    _REQUIRED: Any = object()

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise InputError(where, f"{_shown(values)} is not a mapping of keys to values", "write it as key: value")
        self.values: dict[str, Any] = {str(key): value for key, value in values.items()}
        self.where = where

    def refuse(self, key: str, value: Any, remedy: str) -> NoReturn:
        """Raise InputError for a value that cannot be used."""
        raise InputError(self.where, f"{key}: {_shown(value)} cannot be used", remedy)

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise InputError for a key that is not in `known`, with the nearest name that is."""
        names = sorted(known)
        for key in self.values:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1, 0.0)
                raise InputError(self.where, f"{key}: there is no such key", f"did you mean {near[0]}?")

    def _get(self, key: str, kinds: tuple[type, ...], kind: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is Section._REQUIRED:
                raise InputError(self.where, f"{key}: it is missing", f"give {kind}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise InputError(self.where, f"{key}: {_shown(value)} is not {kind}", f"give {kind}")
        return value

    @overload
    def text(self, key: str) -> str: ...
    @overload
    def text(self, key: str, default: str) -> str: ...
    @overload
    def text(self, key: str, default: None) -> str | None: ...
    def text(self, key: str, default: Any = _REQUIRED) -> str | None:
        """A string that is not empty."""
        value: str | None = self._get(key, (str,), "a string", default)
        if value is not None and not value.strip():
            self.refuse(key, value, "give a string that is not empty")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        return bool(self._get(key, (bool,), "true or false", default))

    def integer(self, key: str, default: int | None, least: int) -> int | None:
        """A whole number of at least `least`."""
        given = self.values.get(key)
        if isinstance(given, float) and given.is_integer():  # 6.5e10 is a whole number too
            self.values[key] = int(given)
        value: int | None = self._get(key, (int,), "a whole number", default)
        if value is not None and value < least:
            self.refuse(key, value, f"give a whole number of at least {least}")
        return value

    @overload
    def number(self, key: str, default: float, most: float = math.inf, positive: bool = True) -> float: ...
    @overload
    def number(self, key: str, default: None, most: float = math.inf, positive: bool = True) -> float | None: ...
    def number(self, key: str, default: Any, most: float = math.inf, positive: bool = True) -> float | None:
        """A finite number from 0 to `most`, above 0 if `positive`."""
        value = self._get(key, (int, float), "a number", default)
        if value is None:
            return None
        if not (math.isfinite(value) and value <= most and (value > 0 or (value == 0 and not positive))):
            bounds = f"{'above 0' if positive else 'from 0'}{f' and at most {most:g}' if most < math.inf else ''}"
            self.refuse(key, value, f"give a number {bounds}")
        return float(value)

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list of strings."""
        values = self._get(key, (list,), "a list of strings", list(default))
        for value in values:
            if not isinstance(value, str) or not value:
                raise InputError(self.where, f"{key}: {_shown(value)} is not a string", "give a list of strings")
        return tuple(values)

    def integers(self, key: str, default: tuple[int, ...], least: int) -> tuple[int, ...]:
        """One whole number or a list of them, each of at least `least`; not empty, none twice."""
        return self._list(key, default, lambda entry: Section(entry, self.where).integer(key, None, least))

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """One number above 0 or a list of them; not empty, none twice."""
        return self._list(key, default, lambda entry: Section(entry, self.where).number(key, None))

    def _list(self, key: str, default: tuple[Any, ...], read: Callable[[dict[str, Any]], Any]) -> tuple[Any, ...]:
        given = self.values.get(key)
        if given is None:
            return default
        values = given if isinstance(given, list) else [given]
        found = tuple(read({key: value}) for value in values)
        if not found or None in found or len(set(found)) < len(found):
            self.refuse(key, given, "give one or more values, each once")
        return found

    def choice(self, key: str, choices: tuple[Any, ...], default: str) -> Any:
        """One of `choices`, which are strings."""
        value = self.text(key, default)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, 1, 0.4)
            remedy = f"did you mean {near[0]}? " if near else ""
            self.refuse(key, value, f"{remedy}use one of {', '.join(choices)}")
        return value

    def section(self, key: str) -> Section:
        """The mapping under `key`; an empty one where it is absent."""
        return Section(self._get(key, (dict,), "a mapping of keys to values", {}), f"{self.where}: {key}")

    def sections(self, key: str) -> list[Section]:
        """The list of mappings under `key`, at least one, each named by its own `name` where it has one."""
        values = self._get(key, (list,), "a list", Section._REQUIRED)
        if not values:
            raise InputError(self.where, f"{key}: the list is empty", "give at least one")
        labels = [value.get("name", i) if isinstance(value, dict) else i for i, value in enumerate(values)]
        return [Section(value, f"{self.where}: {key}[{label}]") for value, label in zip(values, labels, strict=True)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
