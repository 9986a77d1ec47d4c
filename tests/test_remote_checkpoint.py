"""Checkpoints on S3, against a real server: seen whole or not at all, compared before they are loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import losses_of, start_train, train
from s3_server import S3Server

from olmoe_parrots.checkpoint import MANIFEST, UNSHARDED_FILES, seal
from olmoe_parrots.errors import InputError, RunError
from olmoe_parrots.remote_checkpoint import (
    Uploads,
    check_remote_save_folder,
    fetch_checkpoint,
    fetch_newest,
    remote_checkpoints,
    upload_checkpoint,
    uploading,
)


def make(folder: Path, step: int, content: bytes = b"x") -> Path:
    path = folder / f"step{step}-unsharded"
    path.mkdir(parents=True)
    for name in UNSHARDED_FILES:
        (path / name).write_bytes(content + name.encode())
    (path / "more").mkdir()
    (path / "more" / "deep.bin").write_bytes(content * 1000)
    seal(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> str:
    name = tmp_path.name.replace("_", "-").lower()
    s3.client().create_bucket(Bucket=name)
    return f"s3://{name}/runs/one"


def put(s3: S3Server, address: str, body: bytes) -> None:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    s3.client().put_object(Bucket=bucket, Key=key, Body=body)


def test_what_is_fetched_is_what_was_uploaded(bucket: str, tmp_path: Path) -> None:
    local = make(tmp_path / "here", 4)
    assert upload_checkpoint(local, f"{bucket}/{local.name}")
    assert not upload_checkpoint(local, f"{bucket}/{local.name}")  # it is there
    assert remote_checkpoints(bucket) == [(4, False, f"{bucket}/step4-unsharded")]
    assert remote_checkpoints(bucket.rpartition("/")[0]) == []  # one run's folder is not another's
    fetched = fetch_checkpoint(f"{bucket}/step4-unsharded", tmp_path / "there" / "step4-unsharded")
    assert contents(fetched.path) == contents(local)
    assert list((tmp_path / "there").iterdir()) == [fetched.path]


def test_another_runs_checkpoint_is_replaced_only_when_asked(bucket: str, tmp_path: Path) -> None:
    upload_checkpoint(make(tmp_path / "a", 4, b"a"), f"{bucket}/step4-unsharded")
    other = make(tmp_path / "b", 4, b"b")
    with pytest.raises(InputError, match="another run's checkpoint is there"):
        upload_checkpoint(other, f"{bucket}/step4-unsharded")
    assert upload_checkpoint(other, f"{bucket}/step4-unsharded", overwrite=True)
    fetched = fetch_checkpoint(f"{bucket}/step4-unsharded", tmp_path / "c" / "step4-unsharded")
    assert contents(fetched.path) == contents(other)


def test_without_its_manifest_a_checkpoint_is_not_there(bucket: str, tmp_path: Path, s3: S3Server) -> None:
    whole, torn = make(tmp_path / "run", 2), make(tmp_path / "run", 4)
    upload_checkpoint(whole, f"{bucket}/{whole.name}")
    for name, body in contents(torn).items():  # an upload that was killed before its end
        if name != MANIFEST:
            put(s3, f"{bucket}/{torn.name}/{name}", body)
    assert [step for step, _, _ in remote_checkpoints(bucket)] == [2]
    newest = fetch_newest(bucket, tmp_path / "again", after=-1, sharded_too=False)
    assert newest is not None
    assert newest.step == 2


@pytest.mark.parametrize("file", [*UNSHARDED_FILES, MANIFEST])
def test_a_damaged_one_is_passed_over_and_set_aside(bucket: str, tmp_path: Path, s3: S3Server, file: str) -> None:
    for step in (2, 4):
        upload_checkpoint(make(tmp_path / "run", step), f"{bucket}/step{step}-unsharded")
    body = bytearray(contents(tmp_path / "run" / "step4-unsharded")[file])
    body[0] ^= 1
    put(s3, f"{bucket}/step4-unsharded/{file}", bytes(body))
    with pytest.raises(InputError, match=rf"step4-unsharded: the checkpoint is damaged: .*{file}"):
        fetch_checkpoint(f"{bucket}/step4-unsharded", tmp_path / "one" / "step4-unsharded")
    assert list((tmp_path / "one").iterdir()) == []
    newest = fetch_newest(bucket, tmp_path / "again", after=-1, sharded_too=False)
    assert newest is not None
    assert newest.step == 2
    assert [step for step, _, _ in remote_checkpoints(bucket)] == [2]
    assert upload_checkpoint(tmp_path / "run" / "step4-unsharded", f"{bucket}/step4-unsharded")  # whole again
    assert [step for step, _, _ in remote_checkpoints(bucket)] == [2, 4]


def test_what_did_not_arrive_is_told_at_the_end_and_sent_by_the_next_run(
    bucket: str, tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    absent = "s3://there-is-no-such-bucket/run"
    with (
        pytest.raises(RunError, match=r"step4-unsharded is whole on disk, but not on S3 .*there is no bucket"),
        uploading(absent, tmp_path / "run", overwrite=False) as uploads,
    ):
        assert uploads is not None
        uploads.add(make(tmp_path / "run", 2))
        uploads.wait_for(tmp_path / "run" / "step2-unsharded")
        assert "step2-unsharded is removed here and was not copied to S3" in caplog.text
        uploads.add(make(tmp_path / "run", 4))
    with uploading(bucket, tmp_path / "run", overwrite=False):
        pass
    assert [step for step, _, _ in remote_checkpoints(bucket)] == [2, 4]


def test_a_run_does_not_collide_with_what_is_there(bucket: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "run", 4)
    uploads = Uploads(f"{bucket}/")
    uploads.add(checkpoint)
    uploads.finish()
    with pytest.raises(InputError, match="it holds step4-unsharded, which this run would have to overwrite"):
        check_remote_save_folder(bucket, None, overwrite=False)
    check_remote_save_folder(bucket, None, overwrite=True)
    fetched = fetch_newest(bucket, tmp_path / "other", after=-1, sharded_too=True)
    check_remote_save_folder(bucket, fetched, overwrite=False)
    for wrong, what in (("gs://bucket/run", "no address of S3"), ("s3://no-such-bucket-here/run", "no bucket")):
        with pytest.raises(InputError, match=what):
            check_remote_save_folder(wrong, None, overwrite=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_a_run_whose_disk_is_lost_goes_on_from_s3_to_the_same_losses(
    bucket: str, tiny_config: Callable[..., Path], tmp_path: Path, strategy: str
) -> None:
    saves = {"save_interval": 2, "save_interval_unsharded": 2} if strategy == "ddp" else {"save_interval": 2}
    fields = {"distributed_strategy": strategy, "max_duration": 8, **saves}
    config = tiny_config(**fields, remote_save_folder=bucket)
    folder = tmp_path / "run"
    train(config)
    whole = losses_of(folder)
    names = {address.rpartition("/")[2] for _, _, address in remote_checkpoints(bucket)}
    assert {f"step{step}{'-unsharded' if strategy == 'ddp' else ''}" for step in (2, 4, 6, 8)} <= names
    shutil.rmtree(folder)
    again = start_train(config)
    assert "which this run would have to overwrite" in again.communicate()[0]
    assert again.returncode == 2
    # from S3, an earlier one
    suffix = "-unsharded" if strategy == "ddp" else ""
    train(config, f"--load_path={bucket}/step4{suffix}", "--remote_save_folder=null")
    assert losses_of(folder) == whole[4:]
    assert not (folder / ".loaded").exists()
    shutil.rmtree(folder)
    # the newest, into an empty folder, and on to more steps
    train(config, "--try_load_latest_save=true", "--max_duration=10", "--stop_at=10")
    assert losses_of(folder)[:8] == whole and len(losses_of(folder)) == 10  # its log came along
    assert (10, strategy != "ddp") in {(step, sharded) for step, sharded, _ in remote_checkpoints(bucket)}
