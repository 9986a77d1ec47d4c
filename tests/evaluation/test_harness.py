"""Scores of the harness: those of the loop, those of a plain loop over questions, whatever the batches and ranks."""

from collections import defaultdict
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_runs import BATCH, CONTEXT, CPU, TASK, requests_of, trained
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluate import evaluation_loop
from olmoe_parrots.evaluation.checkpoints import LoadedModel, load_model
from olmoe_parrots.evaluation.harness import Score, TaskEvaluator, build_task_evaluator
from olmoe_parrots.evaluation.task_tokenizer import TaskTokenizer, load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def evaluator_of(loaded: LoadedModel, **options: Any) -> TaskEvaluator:
    usual = {"label": TASK, "context": CONTEXT, "batch_size": BATCH, "device": CPU}
    return build_task_evaluator(tokenizer=load_tokenizer(loaded.cfg), **{**usual, **options})


def run(loaded: LoadedModel, evaluator: TaskEvaluator, batches: int | None = None) -> dict[str, Score]:
    loop = evaluation_loop(loaded, CPU)
    evaluator.reset_metrics()
    for batch in islice(evaluator.eval_loader, batches):
        loop.eval_step(batch, evaluator)
    return {score.metric: score for score in evaluator.scores()}


@pytest.mark.parametrize(("kind", "precision"), [("moe", "fp32"), ("dense", "fp32"), ("moe", "amp_bf16")])
def test_scores_are_those_of_the_loop_to_the_last_digit(kind: str, precision: str) -> None:
    told = trained(kind, precision).metrics
    loaded = load_model(str(trained(kind, precision).folder), precision=precision)
    evaluator = evaluator_of(loaded)
    scores = run(loaded, evaluator)
    assert scores["accuracy"].value == told[f"eval/downstream/{TASK}_len_norm"]
    assert scores["bits_per_byte"].value == told[f"eval/downstream/{TASK}_bits_per_byte"]
    assert scores["accuracy"].examples == 299 - evaluator.left_out


def plain_scores(loaded: LoadedModel, questions: int) -> tuple[list[bool], list[float]]:
    """Question by question and option by option, one sequence at a time: right or not, and bits a byte."""
    tokenizer = Tokenizer.from_file(loaded.cfg.tokenizer.identifier)
    options: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    labels, too_long = {}, set()
    for request in requests_of("arc_challenge/rc_0shot"):
        if request["doc_id"] >= questions:
            break
        context, answer = request["request"]["context"], request["request"]["continuation"]
        answer_ids = tokenizer.encode(answer).ids
        if len(answer_ids) > CONTEXT:  # with no room for a token of the question in front: the question does not count
            too_long.add(request["doc_id"])
            continue
        ids = torch.tensor((tokenizer.encode(context).ids + answer_ids)[-CONTEXT - 1 :])
        with torch.no_grad():
            log_probs = loaded.model(ids[None, :-1]).logits[0].double().log_softmax(dim=-1)
        nats = -sum(float(log_probs[place - 1, ids[place]]) for place in range(len(ids) - len(answer_ids), len(ids)))
        options[request["doc_id"]][request["idx"]] = (nats / len(answer), nats / np.log(2) / len(answer.encode()))
        labels[request["doc_id"]] = request["label"]
    for question in too_long:
        options.pop(question, None)
    return (
        [min(one, key=lambda option: one[option][0]) == labels[doc] for doc, one in options.items()],
        [one[labels[doc]][1] for doc, one in options.items()],
    )


def test_scores_are_those_of_a_plain_loop_over_questions() -> None:
    loaded = load_model(str(trained("dense").folder))
    evaluator = evaluator_of(loaded, limit=40)
    scores = run(loaded, evaluator)
    right, bits = plain_scores(loaded, 40)
    count = len(right)
    assert count == scores["accuracy"].examples == 40 - evaluator.left_out
    share = sum(right) / count
    assert scores["accuracy"].value == share
    assert scores["accuracy"].standard_error == pytest.approx((share * (1 - share) / (count - 1)) ** 0.5)
    assert scores["bits_per_byte"].value == pytest.approx(sum(bits) / count, rel=1e-5)
    assert scores["bits_per_byte"].standard_error == pytest.approx(np.std(bits, ddof=1) / count**0.5, rel=1e-4)


def test_scores_are_those_of_the_packages_metric() -> None:
    loaded = load_model(str(trained("moe").folder))
    for label, names in {
        TASK: {"accuracy": "len_norm_v2", "bits_per_byte": "bpb_v2"},
        "arc_easy_rc_0shot": {"accuracy": "acc_v2", "bits_per_byte": "bpb_v2"},
        "naturalqs_bpb_5shot": {"bits_per_byte": "bpb_v2"},
        "natural_qs_open_ppl": {"nats_per_character": "ce_loss_v2"},
    }.items():
        evaluator = evaluator_of(loaded, label=label, limit=30)
        scores = run(loaded, evaluator)
        computed = evaluator.eval_metric.compute()  # type: ignore[union-attr]
        for metric, name in names.items():
            assert scores[metric].value == pytest.approx(float(computed[name]), rel=1e-6), (label, metric)


def test_the_size_of_batches_changes_no_score() -> None:
    loaded = load_model(str(trained("moe").folder))
    one, many = (run(loaded, evaluator_of(loaded, limit=16, batch_size=size)) for size in (1, 16))
    assert one["accuracy"] == many["accuracy"]
    assert one["bits_per_byte"].value == pytest.approx(many["bits_per_byte"].value, rel=1e-6)


def test_a_limit_takes_whole_questions_from_the_first_on() -> None:
    loaded = load_model(str(trained("dense").folder))
    evaluator = evaluator_of(loaded, limit=7)
    asked = [(sample["doc_id"], sample["cont_id"]) for sample in evaluator.eval_loader.dataset]
    expected = [(one["doc_id"], one["idx"]) for one in requests_of("arc_challenge/rc_0shot") if one["doc_id"] < 7]
    assert asked == expected
    assert {score.examples for score in run(loaded, evaluator).values()} == {7}


def test_a_question_that_a_limit_in_the_loop_cuts_does_not_count() -> None:
    loaded = load_model(str(trained("dense").folder))
    cut = run(loaded, evaluator_of(loaded, batch_size=6), batches=3)  # 18 options: four questions, half of the fifth
    whole = run(loaded, evaluator_of(loaded, limit=4))
    assert cut["accuracy"].examples == 4
    assert cut["accuracy"].value == whole["accuracy"].value
    assert run(loaded, evaluator_of(loaded, batch_size=2), batches=1) == {}


def test_what_does_not_fit_the_context_is_counted() -> None:
    loaded = load_model(str(trained("dense").folder))
    tokenizer = Tokenizer.from_file(loaded.cfg.tokenizer.identifier)
    lengths: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one in requests_of("arc_challenge/rc_0shot"):
        texts = one["request"]["context"], one["request"]["continuation"]
        lengths[one["doc_id"]].append((len(tokenizer.encode(texts[0]).ids), len(tokenizer.encode(texts[1]).ids)))
    fitting = [one for one in lengths.values() if all(answer <= 24 for _, answer in one)]
    evaluator = evaluator_of(loaded, context=24)
    assert evaluator.left_out == len(lengths) - len(fitting) > 0
    assert evaluator.shortened == sum(any(c + a - 1 > 24 for c, a in one) for one in fitting) > 0
    assert all(len(sample["query"]) <= 24 for sample in evaluator.eval_loader.dataset)
    with pytest.raises(InputError, match="no answer of its 3 questions fits the model's context of 1 tokens"):
        evaluator_of(loaded, context=1, limit=3)


def prefixing_tokenizer(path: Any) -> str:
    """As Mistral's first: spaces are drawn as a low line, and one is put before every text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>", *spelled], show_progress=False)
    tokenizer.train_from_iterator(["Question: is it so? Answer: yes, it is\nno no no"] * 5, trainer)
    tokenizer.save(str(path))
    return str(path)


def test_a_prompt_and_its_answer_are_encoded_as_one_text(tmp_path: Any) -> None:
    file = prefixing_tokenizer(tmp_path / "tokenizer.json")
    ours = TaskTokenizer(file, eos_token_id=2, pad_token_id=0)
    theirs = Tokenizer.from_file(file)
    for prompt, answer in (("Question: is it so?\nAnswer:", " yes, it is"), ("is it", " so? no")):
        parts = [*ours.encode(prompt, add_special_tokens=False), *ours.encode(answer, add_special_tokens=False)]
        assert parts == theirs.encode(prompt + answer, add_special_tokens=False).ids
    plain = trained("dense").tokenizer
    ours, theirs = TaskTokenizer(str(plain), eos_token_id=2, pad_token_id=0), Tokenizer.from_file(str(plain))
    assert ours.encode(" yes", add_special_tokens=False) == theirs.encode(" yes").ids
