"""The tokenizer of a run, as the tasks of ai2-olmo-eval call it."""

from pathlib import Path
from typing import Any

from olmo_data import get_data_path, is_data_file
from olmo_eval import HFTokenizer

from .. import remote
from ..config import TrainConfig
from ..errors import InputError
from ..shards import TOKENIZER

_GIVE = "give the run's tokenizer.json with --tokenizer"


class TaskTokenizer(HFTokenizer):
    """Tokens of contexts and of what goes on from them, which the tasks encode apart from one another.

    Some tokenizers, Mistral's among them, put a space before any text that they are given. Before an answer, which
    begins with a space of its own, that would make two, as they hardly occur in text. So that of the answer is left to
    them, and the tokens of a context and of an answer are together those of the whole text.
    """

    def __init__(self, file: str, *, eos_token_id: int, pad_token_id: int, bos_token_id: int | None = None) -> None:
        super().__init__(file, eos_token_id=eos_token_id, pad_token_id=pad_token_id, bos_token_id=bos_token_id)
        base: Any = self._base_tokenizer
        base.no_truncation()
        base.no_padding()
        alone, newline, within = (self._ids(text) for text in ("x", "\n", "\nx"))
        self._adds_a_space = alone != within[len(newline) :]
        self._encoded: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._base_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, input: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text; one that begins with a space goes on from another. Not to be changed: they are kept."""
        assert not add_special_tokens, "the tasks add none"
        if (found := self._encoded.get(input)) is None:
            text = input[1:] if self._adds_a_space and input.startswith(" ") else input
            found = self._encoded[input] = self._ids(text)
        return found

    @property
    def vocab_size(self) -> int:
        """The largest id + 1, which is what an embedding must hold even where ids have gaps."""
        return max(self._base_tokenizer.get_vocab().values()) + 1


def load_tokenizer(cfg: TrainConfig, checkpoint: str | None = None, given: str | None = None) -> TaskTokenizer:
    """The tokenizer of a run: the file ``given``, or one beside its checkpoints, or the one that its config names.

    :param checkpoint: the folder of a checkpoint of the run, for a ``tokenizer.json`` in it or in the folder above.
    :raises InputError: when there is no such file, it is no tokenizer, or its vocabulary is not the model's.
    """
    place = _place(cfg, checkpoint, given)
    with get_data_path(place) if is_data_file(place) else remote.local_copy(place) as file:
        try:
            tokenizer = TaskTokenizer(
                str(file), eos_token_id=cfg.model.eos_token_id, pad_token_id=cfg.model.pad_token_id
            )
        except Exception as error:  # the library raises bare Exception
            raise InputError(place, f"it is no tokenizer.json ({error})", _GIVE) from None
    if tokenizer.vocab_size != cfg.model.vocab_size:
        what = f"its vocabulary has {tokenizer.vocab_size} ids and the model's {cfg.model.vocab_size}"
        raise InputError(place, what, _GIVE)
    return tokenizer


def _place(cfg: TrainConfig, checkpoint: str | None, given: str | None) -> str:
    if given is not None:
        if not _is_file(given):
            raise InputError(given, "there is no such file", _GIVE)
        return given
    places = [cfg.tokenizer.identifier]
    if checkpoint is not None:
        run = checkpoint.rpartition("/")[0]
        places = [remote.join(checkpoint, TOKENIZER), remote.join(run, TOKENIZER), *places]
    if cfg.data_folder is not None:
        places.append(remote.join(cfg.data_folder, TOKENIZER))
    for place in places:
        if _is_file(place):
            return place
    raise InputError(cfg.tokenizer.identifier, "the run's tokenizer is not there", _GIVE)


def _is_file(place: str) -> bool:
    if remote.is_remote(place):
        return remote.exists(place)
    return Path(place).is_file() or is_data_file(place)
