"""Models of transformers, from a folder or a GGUF file to rows, held against plain loops over transformers' logits."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from evaluation_runs import requests_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluate import main
from olmoe_parrots.evaluation.pretrained import AsOLMo, find_pretrained
from olmoe_parrots.results import Row, read_rows

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
OLD = int(transformers.__version__.split(".")[0]) < 5
LIMIT = 12
SPECIAL = ["<unk>", "<s>", "</s>"]
WIDTH, LAYERS, HEADS, GROUPS, HIDDEN = 32, 2, 4, 2, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers that transformers saved, with its tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Question: which is it? Answer: the one that they call the goal"] * 9, trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.4,
    )
    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("models") / "TinyLlama"
    LlamaForCausalLM(config).save_pretrained(place)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def gguf_file(folder: Path) -> Path:
    """The same model as llama.cpp writes it: other names, and queries and keys in another order of rows."""
    from gguf import GGUFWriter

    weights = LlamaForCausalLM.from_pretrained(folder).state_dict()
    spelled = json.loads((folder / "tokenizer.json").read_text())["model"]
    path = folder.parent / "Tiny.F32.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(512)
    writer.add_vocab_size(len(spelled["vocab"]))
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(spelled["vocab"], key=spelled["vocab"].get))
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(spelled["vocab"]) - len(SPECIAL)))
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spelled["merges"]])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in weights.items():
        writer.add_tensor(_in_gguf(name), np.ascontiguousarray(_turned(name, weight).numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _in_gguf(name: str) -> str:
    for ours, theirs in {
        "model.layers.": "blk.",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "_proj": "",
        "mlp.": "ffn_",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }.items():
        name = name.replace(ours, theirs)
    return name


def _turned(name: str, weight: torch.Tensor) -> torch.Tensor:
    """llama.cpp rotates neighbouring rows of a head with one another; transformers those of its two halves."""
    heads = HEADS if "q_proj" in name else GROUPS if "k_proj" in name else 0
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape) if heads else weight


def measured(model: Path, output: Path, *options: str) -> dict[tuple[str, str], Row]:
    tasks = "--tasks=arc_easy_rc_0shot,piqa_rc_0shot"
    assert main([str(model), tasks, f"--limit={LIMIT}", f"--output={output}", *options]) == 0
    return {(row.task, row.metric): row for row in read_rows(output)}


@torch.no_grad()
def plain_scores(folder: Path, task: str, per_character: bool) -> tuple[float, float]:
    """Accuracy and bits a byte, an option at a time, by transformers' model and tokenizer alone."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    answers: dict[int, list[float]] = {}
    right, bits = {}, []
    for request in (one for one in requests_of(task) if one["doc_id"] < LIMIT):
        context, answer = (
            tokenizer(request["request"][part], add_special_tokens=False)["input_ids"]
            for part in ("context", "continuation")
        )
        logits = model(torch.tensor([context + answer])).logits[0].double().log_softmax(dim=-1)
        total = sum(float(logits[len(context) - 1 + place, token]) for place, token in enumerate(answer))
        text = request["request"]["continuation"]
        answers.setdefault(request["doc_id"], []).append(total / len(text) if per_character else total)
        right[request["doc_id"]] = request["label"]
        if request["idx"] == request["label"]:
            bits.append(-total / math.log(2) / len(text.encode()))
    chosen = {doc: max(range(len(values)), key=values.__getitem__) for doc, values in answers.items()}
    return sum(chosen[doc] == right[doc] for doc in right) / len(right), sum(bits) / len(bits)


def test_scores_are_those_of_a_plain_loop(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(folder, tmp_path / "rows.jsonl")
    for task, per_character in (("arc_easy", False), ("piqa", True)):
        accuracy, bits = plain_scores(folder, f"{task}/rc_0shot", per_character)
        assert rows[f"{task}_rc_0shot", "accuracy"].value == accuracy
        assert rows[f"{task}_rc_0shot", "bits_per_byte"].value == pytest.approx(bits, rel=1e-5)
    assert f"TinyLlama, pretrained, on cpu in fp32: {folder}" in capsys.readouterr().err
    measured(folder, tmp_path / "rows.jsonl", "--batch-size=3")
    assert "0 measured, 2 were there before" in capsys.readouterr().err


def test_rows_say_what_the_model_is_and_nothing_of_its_training(folder: Path, tmp_path: Path) -> None:
    row = measured(folder, tmp_path / "rows.jsonl")["piqa_rc_0shot", "accuracy"]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    shape = ModelShape(
        d_model=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        n_kv_heads=GROUPS,
        hidden_size=HIDDEN,
        vocab_size=vocabulary,
        sequence_length=512,
        gated=True,
        weight_tying=False,
    )
    assert row.total_params == row.active_params == shape.total_params()
    assert row.non_embedding_params == shape.non_embedding_params()
    assert (row.model, row.checkpoint, row.step) == ("TinyLlama", str(folder), None)
    assert (row.training_tokens, row.training_flops, row.data, row.seed) == (0, 0.0, {}, None)
    assert (row.architecture["type"], row.architecture["width"], row.architecture["experts"]) == ("llama", WIDTH, 0)
    assert (row.details["context"], row.details["precision"], row.examples) == (512, "fp32", LIMIT)
    assert row.versions["transformers"] == transformers.__version__


@pytest.mark.skipif(OLD, reason="runs in the core's environment, whose transformers is 5")
def test_a_gguf_file_scores_as_the_folder_it_was_made_of(folder: Path, gguf_file: Path, tmp_path: Path) -> None:
    ours, theirs = measured(folder, tmp_path / "folder.jsonl"), measured(gguf_file, tmp_path / "gguf.jsonl")
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert theirs[key].value == pytest.approx(row.value, rel=1e-5), key
        assert (theirs[key].model, theirs[key].total_params) == ("Tiny.F32", row.total_params)


def test_a_mixture_of_experts_is_counted_by_what_a_token_meets(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1}
    config = MixtralConfig(**sizes, **heads, tie_word_embeddings=True)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    found = find_pretrained(str(tmp_path / "moe"))
    assert found is not None
    facts = found.facts()
    assert facts["total_params"] - facts["active_params"] == 2 * 3 * (3 * 16 * 24)  # layers, idle experts, matrices
    assert (facts["architecture"]["experts"], facts["architecture"]["top_k"]) == (4, 1)
    loaded = found.load(found.config())  # with tied embeddings, of which one is in the file
    assert sum(weight.numel() for weight in loaded.model.parameters()) == facts["total_params"]


def test_padding_changes_nothing(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[1, 6:] = 2
    padded = torch.nn.functional.pad(ids, (0, 7), value=2)
    with torch.no_grad():
        logits = AsOLMo(model, 2)(padded, attention_mask=None).logits
        torch.testing.assert_close(logits[:, :9], model(ids).logits)
        torch.testing.assert_close(logits[1, :6], model(ids[1:, :6]).logits[0])
    assert logits.shape[:2] == (2, 16)


def broken(folder: Path, place: Path, *without: str) -> Path:
    return shutil.copytree(folder, place / "model", ignore=shutil.ignore_patterns(*without))


def test_a_folder_without_a_tokenizer_is_told(folder: Path, tmp_path: Path) -> None:
    copy = broken(folder, tmp_path, "*token*")
    with pytest.raises(InputError, match="model: there is no tokenizer in it; put the model's"):
        main([str(copy), "--tasks=piqa_rc_0shot", f"--output={tmp_path / 'rows'}"])


def test_weights_that_are_not_there_are_told(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    asked = ["--tasks=piqa_rc_0shot", f"--output={tmp_path / 'rows'}"]
    copy = broken(folder, tmp_path)
    file = copy / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are not there, lm_head\.weight among them"):
        main([str(copy), *asked])
    file.write_bytes(b"torn")
    with pytest.raises(InputError, match="the weights cannot be read by transformers"):
        main([str(copy), *asked])
    file.unlink()
    with pytest.raises(InputError, match="the weights cannot be read by transformers"):
        main([str(copy), *asked])


def test_an_encoder_is_told(folder: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="BertForMaskedLM is no causal language model"):
        main([str(tmp_path / "bert"), "--tasks=piqa_rc_0shot"])
    copy = broken(folder, tmp_path)
    (copy / "config.json").write_text('{"model_type": "parrot"}')
    with pytest.raises(InputError, match="the config cannot be read by transformers"):
        main([str(copy), "--tasks=piqa_rc_0shot"])


def test_what_a_gguf_file_needs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and no more")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "gguf", None)
        with pytest.raises(InputError, match=r"to read it, gguf must be installed; install the hf extra"):
            main([str(file), "--tasks=piqa_rc_0shot"])
    unread = "reads such files wrongly" if OLD else "the config cannot be read by transformers"
    with pytest.raises(InputError, match=unread):
        main([str(file), "--tasks=piqa_rc_0shot"])
    with pytest.raises(InputError, match=r"other\.gguf: this is not a checkpoint folder"):
        main([str(tmp_path / "other.gguf"), "--tasks=piqa_rc_0shot"])


@pytest.mark.parametrize("asked", ["--tasks=svamp_gen", "--perplexity=data"])
def test_what_is_measured_of_our_checkpoints_alone_is_told(folder: Path, asked: str) -> None:
    with pytest.raises(InputError, match="generated answers and held-out text are measured of checkpoints of ours"):
        main([str(folder), asked])


def test_bos_stands_before_a_prompt_where_the_tokenizer_puts_it(folder: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    def tokenizer_of(place: Path) -> Any:
        found = find_pretrained(str(place))
        assert found is not None
        return found.tokenizer(found.config())

    assert tokenizer_of(folder).bos_token_id is None
    copy = broken(folder, tmp_path)
    raw = Tokenizer.from_file(str(copy / "tokenizer.json"))
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    raw.save(str(copy / "tokenizer.json"))
    assert tokenizer_of(copy).bos_token_id == 1
    assert tokenizer_of(copy).encode("x", add_special_tokens=False) == raw.encode("x").ids[1:]
