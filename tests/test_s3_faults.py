"""Runs and evaluations on a real S3 server behind a proxy that refuses, cuts, slows down and hangs."""

import datetime
import gc
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN, losses_of, write_shards
from fault_proxy import Fault, FaultProxy, running_proxy
from s3_server import KEY, SECRET, S3Server

from olmoe_parrots import remote
from olmoe_parrots.checkpoint import checkpoint_at, checkpoints_in
from olmoe_parrots.errors import InputError, RunError, report_and_exit
from olmoe_parrots.evaluation.checkpoints import load_model
from olmoe_parrots.remote_checkpoint import remote_checkpoints
from olmoe_parrots.remote_data import DataError
from olmoe_parrots.remote_errors import Unreachable
from olmoe_parrots.train import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")]

PASSING = {
    "cut answers": Fault("cut", times=4, after=2000),
    "cut requests": Fault("cut", times=3, after=2000, upwards=True),
    "hang": Fault("hang", times=2),
    "slow": Fault("slow", bytes_per_second=2_000_000),
    "refuse": Fault("refuse", times=1),
}
LASTING = {"cut": Fault("cut"), "hang": Fault("hang"), "refuse": Fault("refuse")}
CAUSES = {"cut": "cuts connections", "hang": "gives no answer for 0.5 s", "refuse": "cannot be reached .Connection ref"}
BOUND = 40.0
"""Seconds in which a lasting fault is told: three tries of half a second, a few times over, on a busy machine."""


@dataclass(frozen=True)
class World:
    """A run that nobody disturbed, with checkpoints step2, step4 and step4-unsharded; it and its data also on S3."""

    folder: Path
    bucket: str
    shards: Path

    def config(self, folder: Path, data: object, **fields: object) -> str:
        config = {**TINY_RUN, "save_folder": str(folder / "run"), "save_interval_unsharded": 4, **fields}
        config["model"] = {**TINY_MODEL, **TINY_MOE}
        config["data"] = {"paths": [f"{data}/train/0000.npy"], "drop_last": True}
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)


@pytest.fixture(scope="module")
def world(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    world = World(root / "run", "s3://faults", write_shards(root / "shards"))
    assert main([world.config(root, world.shards)]) == 0
    gc.collect()
    gc.freeze()  # OLMo collects garbage at each checkpoint, which among so many modules takes most of the time
    client = s3_server.client()
    client.create_bucket(Bucket="faults")
    for folder, name in ((world.folder, "trained"), (world.shards, "data")):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), "faults", f"{name}/{path.relative_to(folder)}")
    yield world
    gc.unfreeze()


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with running_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("S3_TIMEOUT", "0.5")
        monkeypatch.setenv("S3_PATIENCE", "1")
        yield proxy


def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")


def begin(proxy: FaultProxy, fault: Fault, request: str) -> None:
    """With the first request that holds `request`; a refusal that is to pass ends after a second."""
    proxy.fail(replace(fault, request=request.encode()))
    if fault.kind == "refuse" and fault.times is not None:
        threading.Thread(target=_heal_soon, args=(proxy,), daemon=True).start()


def _heal_soon(proxy: FaultProxy) -> None:
    count = proxy.counts["refuse"]
    while proxy.counts["refuse"] == count:
        time.sleep(0.01)
    time.sleep(1)
    proxy.heal()


def objects(s3: S3Server, prefix: str) -> dict[str, bytes]:
    """What an undisturbed client sees."""
    client = s3.client()
    found = client.list_objects_v2(Bucket="faults", Prefix=f"{prefix}/").get("Contents", [])
    return {
        entry["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket="faults", Key=entry["Key"])["Body"].read()
        for entry in found
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "step4-unsharded" / "model.pt", weights_only=True)


def assert_same_weights(loaded: Any, world: World) -> None:
    expected, found = weights_of(world.folder), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_changes_no_result(
    world: World, proxy: FaultProxy, s3: S3Server, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Training, its data and its checkpoints on S3; half-way the disk is lost; and the weights are measured there."""
    fault, place = PASSING[name], name.replace(" ", "-")
    address = f"{world.bucket}/{place}"
    config = world.config(tmp_path, f"{world.bucket}/data", remote_save_folder=address)
    begin(proxy, fault, f"{place}/step2/")
    assert main([config, "--stop_at=2"]) == 0
    assert proxy.counts[fault.kind] > 0
    shutil.rmtree(tmp_path / "run")
    proxy.counts.clear()
    begin(proxy, fault, f"{place}/step2/model")
    assert main([config, "--try_load_latest_save=true"]) == 0
    assert proxy.counts[fault.kind] > 0
    assert losses_of(tmp_path / "run") == losses_of(world.folder)
    copied = objects(s3, place)
    assert {file: copied[file] for file in copied if file.startswith("step4")} == {
        file: content for file, content in files(tmp_path / "run").items() if file.startswith("step4")
    }
    assert copied["metrics.jsonl"] == (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for checkpoint in ("step4", "step4-unsharded"):
        begin(proxy, fault, f"{checkpoint}/")
        assert_same_weights(load_model(f"{address}/{checkpoint}"), world)


@pytest.mark.parametrize("kind", LASTING)
def test_a_server_that_is_gone_while_a_run_saves(
    world: World,
    proxy: FaultProxy,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    few_tries(monkeypatch)
    place = f"gone-{kind}"
    config = world.config(tmp_path, world.shards, remote_save_folder=f"{world.bucket}/{place}")
    begin(proxy, LASTING[kind], f"{place}/step4/model")
    start = time.monotonic()
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        report_and_exit(lambda: main([config]))
    assert time.monotonic() - start < BOUND
    told = capsys.readouterr().err
    line = told.splitlines()[-1]
    assert ended.value.code == 1 and line.startswith("error: ") and "Traceback" not in told
    assert f"s3://faults/{place}" in line and proxy.endpoint in line and CAUSES[kind].split(" .")[0] in line
    assert "step4" in line and "is whole on disk, but not on S3" in line
    assert "mend that and run again with --try_load_latest_save=true" in line
    assert losses_of(tmp_path / "run") == losses_of(world.folder)
    for checkpoint in checkpoints_in(tmp_path / "run"):
        assert checkpoint.damage() is None
    there = objects(s3, place)
    assert "step2/manifest.json" in there and not any("step4" in name and "manifest" in name for name in there)
    for text in [told, caplog.text, *map(str, files(tmp_path).values()), *map(str, there.values())]:
        assert SECRET not in text and KEY not in text
    proxy.heal()
    assert main([config, "--try_load_latest_save=true"]) == 0
    there = objects(s3, place)
    assert {name: there[name] for name in there if name.startswith("step")} == {
        name: content for name, content in files(tmp_path / "run").items() if name.startswith("step")
    }


@pytest.mark.parametrize("kind", LASTING)
def test_a_server_that_is_gone_while_a_run_reads_its_data(
    world: World, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    few_tries(monkeypatch)
    # the place in the file of a sequence of step 4
    place = yaml.safe_load((world.folder / "data-indices" / "rank0.tsv").read_text().splitlines()[3].split("\t")[4])
    config = world.config(tmp_path, f"{world.bucket}/data")
    begin(proxy, LASTING[kind], f"bytes={32 * place}-{32 * place + 31}")
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"^s3://faults/data/train/0000.npy: {proxy.endpoint} {CAUSES[kind]}") as told:
        main([config])
    assert time.monotonic() - start < BOUND
    assert "; check the network and AWS_ENDPOINT_URL, then run" in str(told.value) and "\n" not in str(told.value)
    assert isinstance(told.value, RunError)
    # data is asked for ahead: what step 3 needs may be on its way then
    assert losses_of(tmp_path / "run") in (losses_of(world.folder)[:2], losses_of(world.folder)[:3])
    assert [checkpoint.step for checkpoint in checkpoints_in(tmp_path / "run")] == [2]
    assert checkpoint_at(tmp_path / "run" / "step2")
    proxy.heal()
    assert main([config, "--try_load_latest_save=true"]) == 0
    assert losses_of(tmp_path / "run") == losses_of(world.folder)


@pytest.mark.parametrize("kind", LASTING)
def test_a_server_that_is_gone_while_a_checkpoint_is_fetched(
    world: World, proxy: FaultProxy, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    few_tries(monkeypatch)
    before = objects(s3, "trained").keys()
    address = f"{world.bucket}/trained"
    config = world.config(tmp_path, world.shards, remote_save_folder=address)
    expected = rf"^s3://faults/trained/step4.*: {proxy.endpoint} {CAUSES[kind]}.*; check the network"
    for options in (["--try_load_latest_save=true"], [f"--load_path={address}/step4", "--remote_save_folder=null"]):
        begin(proxy, LASTING[kind], "trained/step4/model")
        start = time.monotonic()
        with pytest.raises(Unreachable, match=expected):
            main([config, *options])
        assert time.monotonic() - start < BOUND
        assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for name in ("step4", "step4-unsharded"):
        begin(proxy, LASTING[kind], f"{name}/model")
        start = time.monotonic()
        with pytest.raises(Unreachable, match=expected):
            load_model(f"{address}/{name}")
        assert time.monotonic() - start < BOUND
    assert objects(s3, "trained").keys() == before


def test_loader_workers_pass_on_what_they_are_told() -> None:
    """As torch does, from the text alone."""
    from torch._utils import ExceptionWrapper

    try:
        raise DataError("s3://b/x.npy", "http://h: it is gone (Reset: 1)", "mend it; then go on")
    except DataError as error:
        wrapped, line = ExceptionWrapper(where="in DataLoader worker process 0"), str(error)
    with pytest.raises(DataError) as raised:
        wrapped.reraise()
    assert str(raised.value) == line and raised.value.where == "s3://b/x.npy"


@pytest.mark.parametrize("checkpoint", ["step4", "step4-unsharded"])
def test_a_changed_byte_of_any_file_on_s3_is_noticed_by_evaluation(world: World, s3: S3Server, checkpoint: str) -> None:
    client = s3.client()
    held = {name: body for name, body in objects(s3, "trained").items() if name.startswith(f"{checkpoint}/")}
    unread = {"step4-unsharded/optim.pt", "step4-unsharded/train.pt", "step4/train/rank0.pt"}
    assert held.keys() > {"step4-unsharded/model.pt"} or held.keys() > {"step4/model_and_optim/.metadata"}
    for name, body in held.items():
        changed = bytearray(body)
        changed[len(body) // 2] ^= 1
        client.put_object(Bucket="faults", Key=f"damaged/{name}", Body=bytes(changed))
        others = {other: content for other, content in held.items() if other != name}
        for other, content in others.items():
            client.put_object(Bucket="faults", Key=f"damaged/{other}", Body=content)
        if name in unread:
            assert_same_weights(load_model(f"s3://faults/damaged/{checkpoint}"), world)
            continue
        with pytest.raises(InputError, match=r"damaged.*; name another checkpoint$") as told:
            load_model(f"s3://faults/damaged/{checkpoint}")
        assert name.endswith("manifest.json") or str(told.value).startswith(f"s3://faults/damaged/{name}: ")


def test_what_is_not_whole_on_s3_is_not_the_newest_checkpoint(
    world: World, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    client = s3.client()
    for name, body in objects(s3, "trained").items():
        client.put_object(Bucket="faults", Key=f"half/{name}", Body=body)
    client.delete_object(Bucket="faults", Key="half/step4/manifest.json")  # as if it had not arrived yet
    assert load_model("s3://faults/half").path == "s3://faults/half/step4-unsharded"
    client.put_object(Bucket="faults", Key="half/step4/damaged-manifest.json", Body=b"{}")
    with pytest.raises(InputError, match="no whole checkpoint: step4 was set aside as damaged"):
        load_model("s3://faults/half/step4")
    client.delete_object(Bucket="faults", Key="half/step4-unsharded/manifest.json")  # one of OLMo's own has none
    assert_same_weights(load_model("s3://faults/half/step4-unsharded"), world)
    assert "it is loaded without verification" in caplog.text


def test_an_answer_of_no_such_object_may_be_cut_anywhere(
    world: World, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in range(150, 451, 50):  # from its head into its body
        proxy.fail(Fault("cut", times=1, after=after))
        with pytest.raises(FileNotFoundError):
            remote.read_bytes(f"{world.bucket}/nothing/here")
    proxy.fail(Fault("cut", after=300))
    few_tries(monkeypatch)
    with pytest.raises(Unreachable, match="cuts connections"):
        remote.read_bytes(f"{world.bucket}/nothing/here")


ASKED: dict[str, Callable[[str], object]] = {
    "list": lambda bucket: remote.list_files(f"{bucket}/trained"),
    "head": lambda bucket: remote.size(f"{bucket}/trained/metrics.jsonl"),
    "get": lambda bucket: remote.read_bytes(f"{bucket}/trained/metrics.jsonl"),
    "none": lambda bucket: remote.exists(f"{bucket}/nothing/here"),
}


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("asked", ASKED)
def test_an_answer_that_ends_early_is_none(
    world: World, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, asked: str, closes: bool
) -> None:
    whole = ASKED[asked](world.bucket)
    assert whole or asked == "none"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # in the status line; at the end of a line of the head; in its Content-Length; later in it; in the body
    for after in (10, len("HTTP/1.1 200 OK\r\n"), 55, 120, 190, *([] if asked in ("head", "none") else [500])):
        proxy.fail(Fault("cut", after=after, closes=closes))
        with pytest.raises(Unreachable, match="cuts connections"):
            ASKED[asked](world.bucket)
    few_tries(monkeypatch)
    proxy.fail(Fault("cut", times=1, after=120, closes=closes))
    assert ASKED[asked](world.bucket) == whole


def test_secrets_stay_out_of_messages(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    few_tries(monkeypatch)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-a-session")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:word@127.0.0.1:9")
    for path in ("s3://bucket/x", "s3://user:word@bucket/x", f"s3://{SECRET}/x", "s3://token-of-a-session!/x"):
        with pytest.raises(InputError) as told:
            remote.read_bytes(path)
        assert "word" not in str(told.value) and SECRET not in str(told.value).partition(": ")[2]
        assert "token-of-a-session" not in str(told.value).partition(": ")[2]
    with pytest.raises(InputError, match="credentials do not belong into an address; write s3://bucket/folder"):
        remote_checkpoints("s3://user:word@bucket/x")


def test_a_clock_that_is_wrong_is_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(datetime.datetime):
        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(days=3)

    monkeypatch.setattr("botocore.auth.datetime.datetime", Wrong)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3 * 86400)
    for read in (remote.size, remote.read_bytes, remote.list_files):
        with pytest.raises(InputError, match=r"clock is -72\.0 hours off; set the clock, then run the command again$"):
            read("s3://ready/ready")
