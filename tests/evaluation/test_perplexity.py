"""Perplexity on held-out text: what training logs, a plain loop over the token files, the text that was encoded."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_maker import draw_documents, edit_manifest, write_dataset
from evaluation_runs import BATCH, CONTEXT, CPU, TEXTS, tiny_text, trained
from torchmetrics import MeanMetric

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluate import evaluation_loop
from olmoe_parrots.evaluation.checkpoints import LoadedModel, load_model
from olmoe_parrots.evaluation.perplexity import (
    SequenceLoss,
    by_source,
    find_held_out,
    predicted_bytes,
    scores,
    sequence_losses,
)
from olmoe_parrots.evaluation.task_tokenizer import TaskTokenizer, load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def losses_of(loaded: LoadedModel, **options: int) -> list[SequenceLoss]:
    loop = evaluation_loop(loaded, CPU)
    with torch.no_grad():
        return sequence_losses(
            lambda batch: loop.eval_batch(batch)[0],
            loaded.cfg,
            find_held_out(str(tiny_text()), loaded.cfg),
            load_tokenizer(loaded.cfg),
            **{"batch_size": BATCH, **options},
        )


def rows_of(path: Path) -> np.ndarray:
    tokens = np.fromfile(path, dtype="<u2")
    return tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT).astype(np.int64)


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_losses_sum_to_what_training_logged_to_the_last_digit(kind: str) -> None:
    losses = losses_of(load_model(str(trained(kind).folder)))
    metric = MeanMetric()  # which training's evaluator adds them up by
    for one in losses:
        metric.update(one.nats_per_token)
    logged = trained(kind).metrics
    assert metric.compute().item() == logged["eval/validation/CrossEntropyLoss"]
    told = {score.metric: score for score in scores(losses, CONTEXT)}
    assert told["nats_per_token"].value == pytest.approx(logged["eval/validation/CrossEntropyLoss"], rel=1e-6)
    assert told["perplexity"].value == pytest.approx(logged["eval/validation/Perplexity"], rel=1e-6)


def test_sources_are_those_of_their_files() -> None:
    loaded = load_model(str(trained("dense").folder))
    parts = by_source(losses_of(loaded, batch_size=3))
    assert list(parts) == ["web", "wiki"]
    for source, losses in parts.items():
        rows = torch.from_numpy(rows_of(tiny_text() / "validation" / f"{source}-00000.npy"))
        with torch.no_grad():
            logits = loaded.model(rows).logits[:, :-1].double()
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
        assert len(losses) == len(rows) > 1
        told = {score.metric: score for score in scores(losses, CONTEXT)}
        assert told["nats_per_token"].value == pytest.approx(nats, rel=1e-5)
        assert told["perplexity"].value == pytest.approx(math.exp(nats), rel=1e-4)


def test_bits_per_byte_are_of_the_text_that_was_encoded() -> None:
    losses = losses_of(load_model(str(trained("dense").folder)))
    nats = sum(one.nats_per_token for one in losses) * (CONTEXT - 1)
    size = sum(one.bytes or 0 for one in losses)
    written = sum(len(text.encode()) for text in TEXTS)
    tokens = sum(len(np.fromfile(path, "<u2")) for path in (tiny_text() / "validation").glob("*.npy"))
    share = len(losses) * (CONTEXT - 1) / (tokens - len(TEXTS))  # of tokens, without those that end documents
    assert size == pytest.approx(written * share, rel=0.05)
    told = {score.metric: score for score in scores(losses, CONTEXT)}
    assert told["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size)
    without = [SequenceLoss(one.source, one.nats_per_token, None) for one in losses]
    assert [score.metric for score in scores(without, CONTEXT)] == ["nats_per_token", "perplexity"]


def test_bytes_are_those_behind_the_first_token() -> None:
    file = str(tiny_text() / "tokenizer.json")
    tokenizer = TaskTokenizer(file, eos_token_id=2, pad_token_id=0)
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in (TEXTS[0], TEXTS[-1]))
    head = len(tokenizer.decode(first[:1]).encode())
    whole = len(TEXTS[0].encode()) + len(TEXTS[-1].encode())
    assert predicted_bytes(tokenizer, [*first, 2, *second, 2]) == whole - head
    assert predicted_bytes(tokenizer, [2, *second]) == len(TEXTS[-1].encode())


def test_standard_errors_are_over_sequences() -> None:
    rng = np.random.default_rng(0)
    losses = [SequenceLoss("web", float(2 + rng.normal()), int(rng.integers(200, 400))) for _ in range(400)]
    told = {score.metric: score.standard_error for score in scores(losses, CONTEXT)}
    draws = [[losses[place] for place in rng.integers(0, 400, 400)] for _ in range(400)]
    drawn = [{score.metric: score.value for score in scores(draw, CONTEXT)} for draw in draws]
    for metric, error in told.items():
        assert error == pytest.approx(np.std([one[metric] for one in drawn]), rel=0.15), metric


def test_a_limit_takes_the_first_sequences_of_trainings_order() -> None:
    loaded = load_model(str(trained("dense").folder))
    limited, whole = losses_of(loaded, limit=5), losses_of(loaded)
    assert [one.source for one in limited] == [one.source for one in whole[:5]]
    expected = [one.nats_per_token for one in whole[:5]]
    assert [one.nats_per_token for one in limited] == pytest.approx(expected, rel=1e-6)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    cfg = load_model(str(trained("dense").folder)).cfg
    with pytest.raises(InputError, match="there is no manifest"):
        find_held_out(str(tmp_path), cfg)
    other = write_dataset(tmp_path / "other")
    with pytest.raises(InputError, match="128"):  # another vocabulary
        find_held_out(str(other), cfg)
    masked = write_dataset(tmp_path / "masked", {"validation/web-00000.npy": draw_documents(9, 90)}, masks=True)
    with pytest.raises(InputError, match="only part of its tokens is to be learned"):
        find_held_out(str(masked), cfg)
    copy = shutil.copytree(tiny_text(), tmp_path / "copy")
    edit_manifest(copy, lambda raw: raw.update(files=[one for one in raw["files"] if one["split"] == "train"]))
    with pytest.raises(InputError, match="it has no validation files"):
        find_held_out(str(copy), cfg)
    torn = shutil.copytree(tiny_text(), tmp_path / "torn")
    size = json.loads((torn / "manifest.json").read_text())["files"][1]["bytes"]
    (torn / "validation" / "web-00000.npy").write_bytes(bytes(size - 2))
    with pytest.raises(InputError, match=r"web-00000\.npy"):
        find_held_out(str(torn), cfg)
