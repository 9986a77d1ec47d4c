"""Models of checkpoints: the weights that were saved, whatever the form; and clear words for what is no checkpoint."""

import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from evaluation_runs import STEPS, TrainedRun, trained

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.checkpoints import load_model
from olmoe_parrots.evaluation.task_tokenizer import load_tokenizer

if TYPE_CHECKING:
    from s3_server import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def saved_weights(run: TrainedRun) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run.unsharded / "model.pt", weights_only=True)
    return weights


def copy_of(run: TrainedRun, folder: Path) -> Path:
    return shutil.copytree(run.folder, folder / "copy", symlinks=True)


@pytest.mark.parametrize("kind", ["moe", "dense"])
@pytest.mark.parametrize("name", ["", f"step{STEPS}", f"step{STEPS}-unsharded", "latest"])
def test_the_weights_are_those_that_were_saved(kind: str, name: str) -> None:
    run = trained(kind)
    loaded = load_model(str(run.folder / name))
    assert (loaded.step, loaded.cfg.run_name, loaded.model.training) == (STEPS, kind, False)
    assert Path(loaded.path).name.startswith(f"step{STEPS}")
    expected, found = saved_weights(run), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    for key, weight in expected.items():
        assert torch.equal(weight, found[key]), key


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    copy = copy_of(trained("dense"), tmp_path)
    later = copy / "step9-unsharded"
    shutil.copytree(copy / f"step{STEPS}-unsharded", later)
    assert load_model(str(copy)).step == 9
    (later / "model.pt").unlink()
    assert load_model(str(copy)).step == STEPS
    with pytest.raises(InputError, match=r"step9-unsharded: .*model\.pt missing"):
        load_model(str(later))


def test_folders_without_a_whole_checkpoint_say_what_is_missing(tmp_path: Path) -> None:
    copy = copy_of(trained("dense"), tmp_path)
    (copy / f"step{STEPS}" / "model_and_optim" / ".metadata").unlink()
    (copy / f"step{STEPS}-unsharded" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"no whole checkpoint: .*\.metadata.*config\.yaml"):
        load_model(str(copy))
    with pytest.raises(InputError, match="there is no checkpoint of ours"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match="not a checkpoint folder"):
        load_model(str(tmp_path / "absent"))


def test_torn_weights_and_foreign_configs_are_refused(tmp_path: Path) -> None:
    copy = copy_of(trained("dense"), tmp_path)
    for name in ("manifest.json", "optim.pt"):
        (copy / f"step{STEPS}-unsharded" / name).unlink(missing_ok=True)
    (copy / f"step{STEPS}-unsharded" / "optim.pt").touch()  # nothing is read of it
    model = copy / f"step{STEPS}-unsharded" / "model.pt"
    whole = model.read_bytes()
    model.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"model\.pt: the weights cannot be read"):
        load_model(str(model.parent))
    model.write_bytes(whole)
    config = model.with_name("config.yaml")
    config.write_text(config.read_text().replace("d_model: 32", "d_model: 64"))
    with pytest.raises(InputError, match=r"the weights cannot be read .*size mismatch"):
        load_model(str(model.parent))
    config.write_text("architectures: [LlamaForCausalLM]\n")
    with pytest.raises(InputError, match=r"config\.yaml: this is no config of a training run of ours"):
        load_model(str(model.parent))


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_weights_are_data_and_run_no_code(tmp_path: Path) -> None:
    copy = copy_of(trained("dense"), tmp_path)
    for name, file in (("step", "model_and_optim/.metadata"), ("step-unsharded", "model.pt")):
        folder = copy / name.replace("step", f"step{STEPS}")
        (folder / "manifest.json").unlink(missing_ok=True)
        dump = pickle.dump if name == "step" else torch.save
        with (folder / file).open("wb") as written:
            dump(Bomb(tmp_path / "exploded"), written)
        with pytest.raises(InputError, match="the weights cannot be read"):
            load_model(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_weights_are_in_the_precision_of_training() -> None:
    folder = str(trained("dense").unsharded)
    assert {weight.dtype for weight in load_model(folder).model.parameters()} == {torch.float32}
    loaded = load_model(folder, precision="amp_bf16")  # FSDP's mixed precision keeps 16 bits for the forward pass
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.cfg.autocast_precision == torch.bfloat16


def test_checkpoints_on_s3(s3: "S3Server") -> None:
    run = trained("moe")
    client = s3.client()
    client.create_bucket(Bucket="evaluated")
    for path in sorted(path for path in run.folder.glob("step*/**/*") if path.is_file()):
        client.upload_file(str(path), "evaluated", f"runs/tiny/{path.relative_to(run.folder)}")
    for name in ("", f"/step{STEPS}-unsharded"):
        loaded = load_model(f"s3://evaluated/runs/tiny{name}")
        assert loaded.path == f"s3://evaluated/runs/tiny/step{STEPS}" + name.partition(f"step{STEPS}")[2]
        for key, weight in saved_weights(run).items():
            assert torch.equal(weight, loaded.model.state_dict()[key]), key
    client.delete_object(Bucket="evaluated", Key=f"runs/tiny/step{STEPS}/config.yaml")
    with pytest.raises(InputError, match=rf"no whole checkpoint: step{STEPS} lacks config\.yaml"):
        load_model(f"s3://evaluated/runs/tiny/step{STEPS}")
    with pytest.raises(InputError, match="there is no checkpoint of ours"):
        load_model("s3://evaluated/other")


def test_the_tokenizer_is_the_runs_own(tmp_path: Path) -> None:
    run = trained("dense")
    cfg = load_model(str(run.folder)).cfg
    assert load_tokenizer(cfg).vocab_size == cfg.model.vocab_size
    cfg.tokenizer.identifier, cfg.data_folder = "gone/tokenizer.json", None
    with pytest.raises(InputError, match=r"gone/tokenizer\.json: the run's tokenizer is not there; .*--tokenizer"):
        load_tokenizer(cfg)
    checkpoint = tmp_path / "run" / "step1"
    checkpoint.mkdir(parents=True)
    shutil.copy(run.tokenizer, tmp_path / "run" / "tokenizer.json")
    assert load_tokenizer(cfg, str(checkpoint)).vocab_size == cfg.model.vocab_size
    with pytest.raises(InputError, match=f"its vocabulary has 50280 ids and the model's {cfg.model.vocab_size};"):
        load_tokenizer(cfg, given="tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json")
    (tmp_path / "text.json").write_text("no tokenizer")
    with pytest.raises(InputError, match=r"it is no tokenizer\.json"):
        load_tokenizer(cfg, given=str(tmp_path / "text.json"))
