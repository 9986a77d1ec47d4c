"""S3: against a real server on the loopback, with boto3 clients of the tests' own to look at what arrived."""

import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, TINY_MODEL, TINY_MOE, TINY_RUN, free_port, losses_of, start_train
from dataset_maker import EOS, VOCABULARY, flip_a_bit, sum_of, write_dataset
from s3_server import S3Server
from tokenizers import Tokenizer, models

from data_prep.show import main as show
from data_prep.verify import main as verify_command
from olmoe_parrots import remote
from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_checks import check_training_shards, find_manifest
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import Manifest

CONFIG = {"vocab_size": VOCABULARY, "eos_token_id": 2, "pad_token_id": 0, "dtype": "uint16", "sequence_length": 16}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().create_bucket(Bucket=name)
    return f"s3://{name}"


def _split(address: str) -> dict[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def _put(s3: S3Server, root: Path, address: str) -> None:
    """Copy a folder as another tool would, without sums."""
    for path in root.rglob("*"):
        if path.is_file():
            s3.client().upload_file(str(path), **_split(f"{address}/{path.relative_to(root).as_posix()}"))


def _upload(root: Path, address: str) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            remote.upload(path, f"{address}/{path.relative_to(root).as_posix()}", sum_of(path))


def _line(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as refused:
        action()
    line = str(refused.value)
    assert "\n" not in line and line.count(";") >= 1
    return line


def test_what_is_an_address() -> None:
    assert remote.is_remote("s3://b/x") and not remote.is_remote("/s3/x") and not remote.is_remote(Path("x"))
    assert remote.join("s3://b/x/", "a/b") == "s3://b/x/a/b"
    assert remote.join(Path("/x"), "a/b") == "/x/a/b"
    assert "no address" in _line(lambda: remote.read_bytes("s3://"))


def test_a_large_file_goes_there_in_parts_and_comes_back(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(20_000_003)
    (tmp_path / "file").write_bytes(content)
    digest, address = hashlib.sha256(content).hexdigest(), f"{bucket}/a/b/file.npy"
    assert remote.upload(tmp_path / "file", address, digest) is True
    head = s3.client().head_object(**_split(address))
    assert head["ContentLength"] == len(content) and head["Metadata"]["sha256"] == digest
    assert int(head["ETag"].strip('"').rpartition("-")[2]) == 3, "8 MB a part"
    remote.download(address, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "server") == ["back", "file"]
    assert b"".join(remote.read_blocks(address)) == content
    assert remote.read_bytes(address, 19_999_990) == content[19_999_990:]
    assert remote.read_bytes(address, 5, 25) == content[5:25]
    assert remote.stat(address) == remote.RemoteFile(len(content), digest)


def test_what_is_there_already_is_not_sent_again(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    assert remote.upload(tmp_path / "file", f"{bucket}/file", digest) is True
    before = s3.client().head_object(**_split(f"{bucket}/file"))["LastModified"]
    assert remote.upload(tmp_path / "file", f"{bucket}/file", digest) is False
    assert s3.client().head_object(**_split(f"{bucket}/file"))["LastModified"] == before
    (tmp_path / "file").write_bytes(b"two")
    assert remote.upload(tmp_path / "file", f"{bucket}/file", hashlib.sha256(b"two").hexdigest()) is True
    assert remote.read_bytes(f"{bucket}/file") == b"two"


def test_listing_and_patterns(s3: S3Server, bucket: str) -> None:
    names = ["data/train/a-0.npy", "data/train/a-1.npy", "data/train/.x.npy", "data/train/deep/a.npy", "data2/b.npy"]
    for name in names:
        s3.client().put_object(Body=b"x", **_split(f"{bucket}/{name}"))
    assert remote.list_files(f"{bucket}/data") == sorted(f"{bucket}/{name}" for name in names[:4])
    assert remote.list_files(f"{bucket}/data/") == remote.list_files(f"{bucket}//data")
    assert remote.list_files(bucket) == sorted(f"{bucket}/{name}" for name in names)
    assert remote.list_files(f"{bucket}/dat") == []
    assert remote.find(f"{bucket}/data/train/*.npy") == [f"{bucket}/{name}" for name in names[:2]]
    assert remote.find(f"{bucket}/*/train/a-[1-9].npy") == [f"{bucket}/{names[1]}"]
    assert remote.find(f"{bucket}/data2/b.npy") == [f"{bucket}/data2/b.npy"]
    assert remote.find(f"{bucket}/data3/*") == []


def test_more_files_than_a_page_of_the_listing(s3: S3Server, bucket: str) -> None:
    client = s3.client()
    for number in range(1005):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"many/{number:04d}", Body=b"x")
    assert remote.list_files(f"{bucket}/many") == [f"{bucket}/many/{number:04d}" for number in range(1005)]


def test_an_object_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    for action in (
        lambda: remote.read_bytes(f"{bucket}/none"),
        lambda: remote.size(f"{bucket}/none"),
        lambda: list(remote.read_blocks(f"{bucket}/none")),
        lambda: remote.download(f"{bucket}/none", tmp_path / "none"),
    ):
        with pytest.raises(FileNotFoundError, match="none"):
            action()
    assert not remote.exists(f"{bucket}/none") and not list(tmp_path.glob("*none*"))


def _every_way(address: str, folder: Path) -> list[Callable[[], object]]:
    (folder / "file").write_bytes(b"x")
    return [
        lambda: remote.read_bytes(address),
        lambda: remote.exists(address),
        lambda: remote.list_files(address),
        lambda: remote.download(address, folder / "copy"),
        lambda: remote.upload(folder / "file", address, "0" * 64),
        lambda: Manifest.load(address),
    ]


def test_a_wrong_secret(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.list_files(bucket) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    for action in _every_way(f"{bucket}/x", tmp_path):
        line = _line(action)
        assert bucket in line and "refused the credentials" in line and "guess" not in line


def test_no_credentials(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for action in _every_way(f"{bucket}/x", tmp_path):
        assert "there are no credentials" in _line(action)


def test_a_missing_bucket(s3: S3Server, tmp_path: Path) -> None:
    address = "s3://no-such-bucket/x"
    actions = _every_way(address, tmp_path)
    for action in actions:
        assert "there is no bucket 'no-such-bucket'" in _line(action)


def test_no_server(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for action in _every_way("s3://bucket/x", tmp_path):
        line = _line(action)
        assert f"{endpoint} cannot be reached" in line and "AWS_ENDPOINT_URL" in line


def test_settings_that_cannot_be_used(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in _line(lambda: remote.exists("s3://bucket/x"))
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    assert "AWS_ENDPOINT_URL" in _line(lambda: remote.exists("s3://bucket/x"))


def test_commands_tell_it_in_one_line(s3: S3Server) -> None:
    for module in ("data_prep.verify", "data_prep.show"):
        command = [sys.executable, "-m", module, "s3://no-such-bucket/data"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 2 and not done.stdout
        assert len(done.stderr.splitlines()) == 1 and "there is no bucket" in done.stderr


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    words = {"<pad>": 0, "<unk>": 1, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>")).to_str().encode()
    return write_dataset(tmp_path / "data", tokenizer=tokenizer, masks=True)


def _shards(address: str) -> list[str]:
    return remote.find(f"{address}/train/*.npy")


def test_a_dataset_on_s3_passes_every_check(
    s3: S3Server, bucket: str, dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    address = f"{bucket}/some/data"
    _put(s3, dataset, address)
    assert Manifest.load(address) == Manifest.load(dataset)
    assert find_manifest(f"{address}/train/web-00000.npy") == (address, Manifest.load(dataset))
    here = {suffix: sorted((dataset / "train").glob(f"*.{suffix}")) for suffix in ("npy", "mask")}
    local = check_training_shards(here["npy"], **CONFIG, label_mask_paths=here["mask"])
    masks = remote.find(f"{address}/train/*.mask")
    for verification in ("auto", "sizes", "hashes"):
        options = CONFIG | {"label_mask_paths": masks, "verification": verification}
        assert check_training_shards(_shards(address), **options) == local
    assert verify(address) == [] == verify(address, sizes_only=True)
    assert verify_command([f"{address}/"]) == 0
    capsys.readouterr()
    arguments = ["--length", "32", "--seed", "3"]
    assert show([address, *arguments]) == show([str(dataset), *arguments]) == 0
    shown = capsys.readouterr().out.split(f"{dataset}: train")
    assert shown[0].split("\n", 1)[1].strip() == shown[1].split("\n", 1)[1].strip()


def _flip(root: Path) -> str:
    flip_a_bit(root / "train" / "wiki-00000.npy")
    return "train/wiki-00000.npy"


def _truncate(root: Path) -> str:
    os.truncate(root / "train" / "web-00001.npy", 700)
    return "train/web-00001.npy"


def _delete(root: Path) -> str:
    (root / "train" / "web-00001.npy").unlink()
    return "train/web-00001.npy"


def _swap_tokenizer(root: Path) -> str:
    (root / "tokenizer.json").write_bytes(b"{}")
    return "tokenizer.json"


@pytest.mark.parametrize("damage", [_flip, _truncate, _delete, _swap_tokenizer])
@pytest.mark.parametrize("with_sums", [True, False])
def test_damage_on_s3_is_refused(
    s3: S3Server, bucket: str, dataset: Path, damage: Callable[[Path], str], with_sums: bool
) -> None:
    name = damage(dataset)
    address = f"{bucket}/data"
    if with_sums:
        _upload(dataset, address)
    else:
        _put(s3, dataset, address)
    assert any(f"{address}/{name}" in problem for problem in verify(address))
    # a deleted shard has no mask to name
    masks = [f"{path.removesuffix('.npy')}.mask" for path in _shards(address)]
    options = CONFIG | {"label_mask_paths": masks}
    assert f"{address}/{name}" in _line(
        lambda: check_training_shards(_shards(address), **options, verification="hashes")
    )
    if damage is _flip and not with_sums:  # neither its size nor a stored sum tells
        assert check_training_shards(_shards(address), **options) > 0
    else:
        assert f"{address}/{name}" in _line(lambda: check_training_shards(_shards(address), **options))


def _config(folder: str, tmp_path: Path, name: str) -> Path:
    pattern = "${path.glob:${data_folder}/%s}"
    fields = {**TINY_RUN, "data_folder": folder, "save_folder": str(tmp_path / name), "max_duration": 3}
    fields["model"] = {**TINY_MODEL, **TINY_MOE}
    fields["tokenizer"] = {"identifier": "${data_folder}/tokenizer.json"}
    masks = pattern % "train/*.mask"
    fields["data"] = {"paths": pattern % "train/*.npy", "label_mask_paths": masks, "drop_last": True}
    held_out = {"datasets": {"validation": pattern % "validation/*.npy"}, "drop_last": True}
    task = {"label": "piqa", "type": "downstream", "subset_num_batches": 1}
    fields["evaluators"] = [{"label": "validation", "type": "lm", "data": held_out}, task]
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.slow
def test_training_from_s3_is_training_from_disk(s3: S3Server, bucket: str, dataset: Path, tmp_path: Path) -> None:
    """With everything from there: token files, label masks, held-out files, the tokenizer of a task."""
    _upload(dataset, f"{bucket}/data")
    configs = [_config(f"{bucket}/data", tmp_path, "there"), _config(str(dataset), tmp_path, "here")]
    for config in configs:
        output, _ = (process := start_train(config)).communicate(timeout=300)
        assert process.returncode == 0, output
        assert "trained to step 3" in output
    there, here = losses_of(tmp_path / "there"), losses_of(tmp_path / "here")
    assert there == here and len(there) == 3
    assert "eval/downstream/piqa" in (tmp_path / "there" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_training_command_refuses_in_one_line(s3: S3Server, bucket: str, dataset: Path, tmp_path: Path) -> None:
    from olmoe_parrots.train import main

    def refusal(folder: str) -> str:
        return _line(lambda: main([str(_config(folder, tmp_path, "run"))]))

    assert "there is no bucket 'no-such-bucket'" in refusal("s3://no-such-bucket/data")
    assert f"{bucket}/data/train/*.npy does not match any files" in refusal(f"{bucket}/data")
    os.truncate(dataset / "validation" / "web-00000.npy", 100)
    _upload(dataset, f"{bucket}/data")
    assert f"{bucket}/data/validation/web-00000.npy: it has 100 bytes" in refusal(f"{bucket}/data/")
    assert not (tmp_path / "run").exists()
