"""Counts against a plain loop over the tokens, and routers that are rigged."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_data import TASKS, make_data, make_model
from torch import Tensor

from olmoe_parrots.evaluation.routing_counts import Tables, count_routing
from olmoe_parrots.evaluation.routing_data import Sample, open_split
from olmoe_parrots.evaluation.routing_measures import measure
from olmoe_parrots.model import ParrotsOLMo
from olmoe_parrots.moe.router import TopKRouter

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
LAYERS, EXPERTS = 2, 4


class Loop:
    """What the routers of a model do with a sample, a sequence and a token at a time, in Python's own numbers."""

    def __init__(self, model: ParrotsOLMo, sample: Sample, top_k: int) -> None:
        self.counts: Counter[tuple[object, ...]] = Counter()
        self.probability = [[0.0] * EXPERTS for _ in range(LAYERS)]
        self.entropy = [0.0] * LAYERS
        seen: list[Tensor] = []
        routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        for router in routers:
            router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for row, tokens in enumerate(sample.tokens_RS.tolist()):
            seen.clear()
            with torch.no_grad():
                model(torch.tensor([tokens]))
            for layer, (x_TD, router) in enumerate(zip(seen, routers, strict=True)):
                for place, logits in enumerate((x_TD @ router.layer.weight.T).tolist()):
                    if sample.counted_RS[row, place]:
                        self._count(layer, logits, top_k, sample, row, place)

    def _count(self, layer: int, logits: list[float], top_k: int, sample: Sample, row: int, place: int) -> None:
        powers = [math.exp(value) for value in logits]
        for expert, power in enumerate(powers):
            p = power / sum(powers)
            self.probability[layer][expert] += p
            self.entropy[layer] -= p * math.log(p)
        chosen = sorted(range(EXPERTS), key=lambda e: -logits[e])[:top_k]
        part = None if sample.part_RS is None else int(sample.part_RS[row, place])
        for expert in chosen:
            self.counts["token", layer, int(sample.tokens_RS[row, place]), expert] += 1
            self.counts["part", layer, part, expert] += 1
            self.counts["source", layer, int(sample.source_R[row]), expert] += 1
            for other in chosen:
                self.counts["pair", layer, expert, other] += 1


def nonzero(name: str, table: Tensor) -> Counter[tuple[object, ...]]:
    """A table (L, G, E) as counts by place, as the loop keeps them."""
    return Counter({(name, *place): int(table[tuple(place)]) for place in table.nonzero().tolist()})


@pytest.mark.parametrize("name, top_k", [("phone_book", 1), ("shortest_path", 2), ("shortest_path", 3)])
def test_counts_are_those_of_a_loop_over_the_tokens(tmp_path: Path, name: str, top_k: int) -> None:
    task = TASKS[name]
    split = open_split(str(make_data(tmp_path / "data", name, test_size=60)), None)
    sample = split.sample(task.row_length, 21, 1000)
    sample = replace(sample, source_R=np.arange(21) % 3, sources=("a", "b", "c"))
    model = make_model("moe", task, moe_top_k=top_k)
    loop = Loop(model, sample, top_k)
    tables = count_routing(model, sample, batch_size=8)
    found = nonzero("pair", tables.pairs_LEE) + nonzero("part", tables.part.counts_LGE)
    found += nonzero("source", tables.source.counts_LGE)
    by_id = torch.zeros(LAYERS, len(task.vocabulary.words), EXPERTS, dtype=torch.int64)
    by_id[:, torch.from_numpy(tables.ids_U.astype(np.int64))] = tables.token.counts_LGE
    found += nonzero("token", by_id)
    assert found == loop.counts
    assert tables.probability_LE.tolist() == [pytest.approx(row, rel=1e-5) for row in loop.probability]
    assert tables.entropy_L.tolist() == pytest.approx(loop.entropy, rel=1e-5)
    tokens = int(sample.counted_RS.sum())
    assert tables.tokens == tokens
    assert tables.load_LE.sum(dim=1).tolist() == [top_k * tokens] * LAYERS
    padded = sample.tokens_RS.size - tokens
    assert padded > 0 if name == "shortest_path" else padded == 0


def test_statistics_of_the_forward_pass_are_the_same(tmp_path: Path) -> None:
    """Of one batch without padding, what the blocks hand over and what is counted."""
    task = TASKS["phone_book"]
    sample = open_split(str(make_data(tmp_path / "data", "phone_book")), "train").sample(task.row_length, None, 64)
    model = make_model("moe", task)
    tables = count_routing(model, sample, batch_size=64)
    routing = model(torch.from_numpy(sample.tokens_RS.astype(np.int64))).routing
    assert routing is not None
    for layer, statistics in enumerate(routing):
        assert tables.load_LE[layer].tolist() == statistics.tokens_per_expert_E.tolist()
        mean = tables.probability_LE[layer] / tables.tokens
        torch.testing.assert_close(mean.float(), statistics.mean_probability_E.detach())


def test_shuffled_counts_have_the_same_margins(tmp_path: Path) -> None:
    task = TASKS["shortest_path"]
    sample = open_split(str(make_data(tmp_path / "data", "shortest_path")), "test").sample(task.row_length, 40, 1000)
    sample = replace(sample, source_R=np.arange(40) % 3, sources=("a", "b", "c"))
    tables = count_routing(make_model("moe", task), sample, batch_size=16)
    for grouping in (tables.token, tables.part):
        for shuffled in grouping.shuffled_LXGE.unbind(1):
            assert torch.equal(shuffled.sum(dim=1), tables.load_LE)
            assert torch.equal(shuffled.sum(dim=2), grouping.counts_LGE.sum(dim=2))
            assert not torch.equal(shuffled, grouping.counts_LGE)
    assert torch.equal(tables.source.shuffled_LXGE.sum(dim=2), tables.load_LE[:, None].expand(-1, 20, -1))


def test_hooks_are_gone_afterwards_and_a_dense_model_is_no_model_for_this(tmp_path: Path) -> None:
    task = TASKS["phone_book"]
    sample = open_split(str(make_data(tmp_path / "data", "phone_book")), "train").sample(task.row_length, 4, 1000)
    model = make_model("moe", task)
    count_routing(model, sample, batch_size=4)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="dense"):
        count_routing(make_model("dense", task), sample, batch_size=4)


def rigged_model(top_k: int) -> ParrotsOLMo:
    """Token v goes to expert v mod 4 and then to the next one: embeddings are one-hot, and nothing else is added."""
    task = TASKS["phone_book"]
    model = make_model("moe", task, d_model=64, moe_num_experts=EXPERTS, moe_top_k=top_k)
    words = len(task.vocabulary.words)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(words, 64))
        for block in model.transformer.blocks:
            block.attn_out.weight.zero_()
            block.ff_out.w_out.weight.zero_()
            weight = torch.zeros(EXPERTS, 64)
            ids = torch.arange(64)
            weight[ids % EXPERTS, ids] = 2.0
            weight[(ids + 1) % EXPERTS, ids] = 1.0
            block.ff_out.router.layer.weight.copy_(weight)
    return model


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_router_that_only_sees_the_token(top_k: int) -> None:
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(4, 36), 16)).reshape(64, 8).astype(np.int32)
    sample = Sample(ids, np.ones(ids.shape, dtype=np.bool_), np.zeros(64, dtype=np.int64), ("one",))
    rows = measure(count_routing(rigged_model(top_k), sample, batch_size=10), sample)
    for layer in range(LAYERS):
        found = {row["measurement"]: row for row in rows if row["layer"] == layer}
        assert found["load"]["counts"] == [128 * top_k] * EXPERTS
        assert found["load_entropy"]["value"] == pytest.approx(1)
        assert found["load_max_over_mean"]["value"] == pytest.approx(1)
        # of two experts a token, one of which a token's assignment is to, ln 2 is never known
        assert found["token_mutual_information"]["value"] == pytest.approx(math.log(EXPERTS / top_k))
        assert found["token_specialization"]["value"] == pytest.approx(1)
        assert found["token_mutual_information"]["shuffled"][0] < 0.15
        assert "source_specialization" not in found, "there is one source"
        assert ("co_activation" in found) == (top_k == 2)
        if top_k == 2:
            neighbours = [[0, 1.5, 0, 1.5], [1.5, 0, 1.5, 0], [0, 1.5, 0, 1.5], [1.5, 0, 1.5, 0]]
            ratio = np.array(found["co_activation"]["value"], dtype=float)
            assert np.isnan(ratio.diagonal()).all()
            assert np.nan_to_num(ratio).tolist() == neighbours
            # four pairs of a quarter of the tokens each, where there would be six of a sixth
            assert found["co_activation_distance"]["value"] == pytest.approx(1 / 3)


def test_random_routing_says_nothing_once_corrected() -> None:
    """The plain estimate is far from 0: 200 ids and 8 experts have 1,393 degrees of freedom in 5,000 tokens."""
    random = np.random.default_rng(3)
    ids = random.integers(0, 200, (50, 100)).astype(np.int32)
    sample = Sample(ids, np.ones(ids.shape, dtype=np.bool_), np.arange(50) % 5, ("a", "b", "c", "d", "e"))
    tables = Tables(sample, 1, 8, 2)
    for first in range(0, 50, 10):
        scores = torch.from_numpy(random.random((1000, 8)))
        tables.add(0, torch.arange(first, first + 10), scores.topk(2).indices, scores.softmax(dim=-1))
    found = {row["measurement"]: row for row in measure(tables, sample)}
    about = found["token_mutual_information"]
    # the chi-squared law's mean, a seventh less as a token's two experts differ: 199·7 / (2·10,000) · 6/7
    assert about["value"] == pytest.approx(0.0597, rel=0.15)
    assert abs(about["value"] - about["shuffled"][0]) < 0.01
    for name in ("token", "frequency_band", "source"):
        assert abs(found[f"{name}_specialization"]["value"]) < 0.01
    assert abs(found["co_activation_distance"]["value"]) < 0.05
    assert found["load_entropy"]["value"] > 0.999
