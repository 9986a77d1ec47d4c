"""The adapter to lm-evaluation-harness, held against plain loops over tokens."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from byte_models import EOS, make_loaded, write_tokenizer
from lm_eval.api.instance import Instance

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.checkpoints import LoadedModel
from olmoe_parrots.evaluation.lm_adapter import ParrotsLM
from olmoe_parrots.generation import continue_greedily

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
KINDS = ("dense", "moe")
CPU = torch.device("cpu")
SENTENCE = "the parrot says what it has heard and the owl thinks of what it might be before it speaks"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def models(tokenizer: Path) -> dict[str, LoadedModel]:
    return {kind: make_loaded(tokenizer, kind) for kind in KINDS}


def ids_of(text: str, tokenizer: Path) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(tokenizer)).encode(text).ids
    return ids


def ask(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@torch.no_grad()
def plain_score(loaded: LoadedModel, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """A forward pass of its own for each token."""
    total, greedy, sequence = 0.0, True, list(context)
    for token in continuation:
        window = sequence[-loaded.cfg.model.max_sequence_length :]
        logits = loaded.model(input_ids=torch.tensor([window])).logits[0, -1].double().tolist()
        shift = max(logits)
        total += logits[token] - shift - math.log(sum(math.exp(value - shift) for value in logits))
        greedy &= logits[token] == shift
        sequence.append(token)
    return total, greedy


@torch.no_grad()
def plain_text(loaded: LoadedModel, prompt: Sequence[int], length: int) -> tuple[list[int], list[torch.Tensor]]:
    """The whole sequence anew for each token; up to and with EOS."""
    sequence, logits = list(prompt), []
    while len(sequence) < len(prompt) + length and (sequence[-1] != EOS or len(sequence) == len(prompt)):
        logits.append(loaded.model(input_ids=torch.tensor([sequence])).logits[0, -1])
        sequence.append(int(logits[-1].argmax()))
    return sequence[len(prompt) :], logits


def prompts(count: int = 16) -> list[str]:
    """Of 3 to 60 bytes."""
    return [" ".join(WORDS[i % 5 : i % 5 + 1 + i * 7 % 11])[: 3 + i * 13 % 58] or "x" for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_those_of_a_loop_over_tokens(
    kind: str, models: dict[str, LoadedModel], tokenizer: Path
) -> None:
    pairs = [("what it", " has heard"), ("", "the owl"), ("a" * 90, " long"), ("b" * 200, " cut off"), ("q ", "r")]
    pairs += [(text, " " + WORDS[place % 18]) for place, text in enumerate(prompts(4))]
    lm = ParrotsLM(models[kind], batch_size=4)
    scores = lm.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (found, greedy) in zip(pairs, scores, strict=True):
        wanted = ids_of(continuation, tokenizer)
        before = ids_of(context, tokenizer) or [EOS]
        if context == "q ":  # a space at the end of a context goes to the continuation
            before, wanted = before[:-1], before[-1:] + wanted
        # the library's rule: one window ends with the continuation
        before = before[len(before) + len(wanted) - 97 :] if len(before) + len(wanted) > 97 else before
        expected, expected_greedy = plain_score(models[kind], before, wanted)
        assert found == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy
    assert lm.truncated == 1, "200 bytes and 8, of which 97 fit; 90 and 5 do"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_greedy_is_told(kind: str, models: dict[str, LoadedModel]) -> None:
    loaded = models[kind]
    lm = ParrotsLM(loaded)
    said, _ = plain_text(loaded, lm.tok_encode("the parrot"), 6)
    other = [*said[:-1], (said[-1] + 1) % 256]
    requests = [(None, lm.tok_encode("the parrot"), said), (None, lm.tok_encode("the parrot"), other)]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(requests, disable_tqdm=True)] == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_scored_in_windows(kind: str, models: dict[str, LoadedModel], tokenizer: Path) -> None:
    texts = ["short", " ".join(WORDS * 2)[:130]]
    lm = ParrotsLM(models[kind], batch_size=4)
    found = lm.loglikelihood_rolling(ask("loglikelihood_rolling", *[(text,) for text in texts]), disable_tqdm=True)
    for text, score in zip(texts, found, strict=True):
        ids = [EOS, *ids_of(text, tokenizer)]
        # each window of 96 begins with the last token of the one before; the last one is filled up on the left
        starts = range(1, len(ids), 96)
        expected = 0.0
        for start in starts:
            end = min(start + 96, len(ids))
            first = max(0, end - 97) if end - start < 96 else start - 1
            expected += plain_score(models[kind], ids[first:start], ids[start:end])[0]
        assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_different_lengths_are_continued_as_alone(kind: str, models: dict[str, LoadedModel]) -> None:
    loaded = models[kind]
    rows = [ParrotsLM(loaded).tok_encode(text) for text in prompts(8)]
    assert len({len(row) for row in rows}) > 4
    decoded = continue_greedily(loaded.model, rows, 16, eos_token_id=EOS, device=CPU)
    assert decoded == [plain_text(loaded, row, 16)[0] for row in rows]
    assert len({tuple(row) for row in decoded}) > 2, "the prompts are told apart"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_do_not_depend_on_the_batch(kind: str, models: dict[str, LoadedModel]) -> None:
    loaded = models[kind]
    rows = [ParrotsLM(loaded).tok_encode(text) for text in prompts(8)]
    shortest = min(map(len, rows))
    seen: list[torch.Tensor] = []

    def recorded(**arguments: object) -> object:
        output = loaded.model(**arguments)
        seen.append(output.logits[:, -1])
        return output

    decoded = continue_greedily(recorded, rows, 8, eos_token_id=EOS, device=CPU)
    for place, row in enumerate(rows):
        _, alone = plain_text(loaded, row, 8)
        for step in range(len(decoded[place])):
            together = seen[len(row) - shortest + step][place]
            # 1e-5 of the largest logit, which with these weights is of the order of ten
            torch.testing.assert_close(together, alone[step], rtol=0, atol=1e-5 * float(alone[step].abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_1_and_of_16_say_and_score_the_same(kind: str, models: dict[str, LoadedModel]) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 8}
    generation = ask("generate_until", *[(text, settings) for text in prompts()])
    choices = ask("loglikelihood", *[(text, f" {WORDS[i % 18]}") for i, text in enumerate(prompts())])
    one, many = ParrotsLM(models[kind], batch_size=1), ParrotsLM(models[kind], batch_size=16)
    assert one.generate_until(generation, disable_tqdm=True) == many.generate_until(generation, disable_tqdm=True)
    alone, together = (lm.loglikelihood(choices, disable_tqdm=True) for lm in (one, many))
    assert [greedy for _, greedy in alone] == [greedy for _, greedy in together]
    assert [score for score, _ in alone] == pytest.approx([score for score, _ in together], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_stops_where_it_is_told_to(kind: str, models: dict[str, LoadedModel]) -> None:
    loaded = models[kind]
    lm = ParrotsLM(loaded, batch_size=4)
    for prompt in prompts(4):
        said, _ = plain_text(loaded, lm.tok_encode(prompt), 20)
        text = lm.tokenizer.decode([token for token in said if token != EOS])
        whole, short, cut = lm.generate_until(
            ask(
                "generate_until",
                (prompt, {"max_gen_toks": 20}),
                (prompt, {"max_gen_toks": 5, "until": "never said"}),
                (prompt, {"max_gen_toks": 20, "until": ["never said", text[6:8], text[3:5]]}),
            ),
            disable_tqdm=True,
        )
        assert whole == text
        assert short == lm.tokenizer.decode([token for token in said[:5] if token != EOS])
        assert cut == text[: min(text.find(text[6:8]), text.find(text[3:5]))]


def test_a_model_that_says_eos_ends_there(models: dict[str, LoadedModel]) -> None:
    loaded = models["dense"]
    said, _ = plain_text(loaded, ParrotsLM(loaded).tok_encode("the owl"), 4)
    decoded = continue_greedily(
        loaded.model, [ParrotsLM(loaded).tok_encode("the owl")], 4, eos_token_id=said[2], device=CPU
    )
    assert decoded[0] == said[: said.index(said[2]) + 1]


def test_long_prompts_lose_their_beginning_and_are_counted(models: dict[str, LoadedModel]) -> None:
    lm = ParrotsLM(models["dense"])
    long = " ".join(WORDS * 4)
    asked = ask("generate_until", (long, {"max_gen_toks": 10}), (long[-86:], {"max_gen_toks": 10}), ("x", {}))
    first, second, _ = lm.generate_until(asked, disable_tqdm=True)
    assert first == second
    assert lm.truncated == 1
    # with more than half of the context asked for, half of it is the prompt's
    more = ask("generate_until", (long, {"max_gen_toks": 1000}), (long[-48:], {"max_gen_toks": 48}))
    first, second = lm.generate_until(more, disable_tqdm=True)
    assert first == second


def test_what_cannot_be_done_is_refused(models: dict[str, LoadedModel]) -> None:
    lm = ParrotsLM(models["dense"])
    with pytest.raises(InputError, match="sampling"):
        lm.generate_until(ask("generate_until", ("x", {"do_sample": True, "temperature": 1.0})))
    with pytest.raises(InputError, match="a continuation has 97 tokens and the model's context 96"):
        lm.loglikelihood(ask("loglikelihood", ("x", "y" * 97)), disable_tqdm=True)


def test_a_capacity_is_warned_of(tokenizer: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ParrotsLM(make_loaded(tokenizer, "moe"))
        assert not caplog.records
        ParrotsLM(make_loaded(tokenizer, "moe", moe_dropless=False, moe_capacity_factor=1.0))
    assert "the experts have a capacity" in caplog.text
