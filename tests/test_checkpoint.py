"""Which checkpoints of a folder count, and what a run may do with the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from olmoe_parrots.checkpoint import (
    MANIFEST,
    SHARDED_FILES,
    UNSHARDED_FILES,
    check_save_folder,
    checkpoint_at,
    checkpoints_in,
    finish_removals,
    latest_checkpoint,
    remove,
    seal,
    set_aside_later,
)
from olmoe_parrots.errors import InputError


def make(folder: Path, name: str, *, whole: bool = True) -> Path:
    files = UNSHARDED_FILES if name.endswith("-unsharded") else SHARDED_FILES
    for file in files if whole else files[1:]:
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    seal(folder / name)
    return folder / name


def test_the_latest_whole_checkpoint_counts(tmp_path: Path) -> None:
    for name in ("step2", "step10", "step10-unsharded", "step9", "step11-tmp"):
        make(tmp_path, name)
    make(tmp_path, "step12", whole=False)
    names = [checkpoint.path.name for checkpoint in checkpoints_in(tmp_path)]
    assert names == ["step2", "step9", "step10-unsharded", "step10", "step12"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert (latest.path.name, latest.step, latest.sharded) == ("step10", 10, True)
    unsharded = latest_checkpoint(tmp_path, sharded_too=False)
    assert unsharded is not None
    assert unsharded.path.name == "step10-unsharded"


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


def test_a_link_is_followed_and_half_a_checkpoint_refused(tmp_path: Path) -> None:
    make(tmp_path, "step4")
    (tmp_path / "latest").symlink_to("step4")
    assert checkpoint_at(tmp_path / "latest").step == 4
    make(tmp_path, "step6", whole=False)
    with pytest.raises(InputError, match=r"not whole: model_and_optim/\.metadata"):
        checkpoint_at(tmp_path / "step6")


def test_resuming_must_not_overwrite_later_checkpoints(tmp_path: Path) -> None:
    for name in ("step2", "step4"):
        make(tmp_path, name)
    check_save_folder(tmp_path, checkpoint_at(tmp_path / "step4"), overwrite=False)
    with pytest.raises(InputError, match="step4, later than step 2"):
        check_save_folder(tmp_path, checkpoint_at(tmp_path / "step2"), overwrite=False)
    check_save_folder(tmp_path, checkpoint_at(tmp_path / "step2"), overwrite=True)


def test_another_runs_checkpoint_does_not_open_a_used_folder(tmp_path: Path) -> None:
    other = make(tmp_path / "other", "step4")
    make(tmp_path / "used", "step1")
    with pytest.raises(InputError, match="already holds a run"):
        check_save_folder(tmp_path / "used", checkpoint_at(other), overwrite=False)
    check_save_folder(tmp_path / "fresh", checkpoint_at(other), overwrite=False)


def test_a_relative_folder_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "runs" / "a", "step4")
    monkeypatch.chdir(tmp_path)
    latest = latest_checkpoint(Path("runs/a"))
    assert latest is not None
    check_save_folder(Path("runs/a"), latest, overwrite=False, goes_on=True)


def test_a_run_that_was_stopped_before_its_first_checkpoint_may_start_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    check_save_folder(tmp_path, None, overwrite=False, goes_on=True)
    with pytest.raises(InputError, match="already holds a run"):
        check_save_folder(tmp_path, None, overwrite=False)
    make(tmp_path, "step2", whole=False)
    with pytest.raises(InputError, match="step2"):
        check_save_folder(tmp_path, None, overwrite=False, goes_on=True)


def _cut(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    path.write_bytes(b"y")


@pytest.mark.parametrize("name", [*SHARDED_FILES, MANIFEST])
@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    for step in (2, 4, 6):
        make(tmp_path, f"step{step}")
    harm(tmp_path / "step6" / name)
    told: list[str] = []
    latest = latest_checkpoint(tmp_path, report=told.append)
    assert latest is not None and latest.step == 4
    assert len(told) == 1 and "step6 is passed over" in told[0] and name in told[0]
    if name != MANIFEST or harm is not Path.unlink:  # without a manifest it is as one that OLMo wrote
        with pytest.raises(InputError, match="is damaged: "):
            checkpoint_at(tmp_path / "step6")
    check_save_folder(tmp_path, latest, overwrite=False, goes_on=True)
    assert [place.name for place in set_aside_later(tmp_path, 4)] == ["damaged-step6"]
    assert [checkpoint.step for checkpoint in checkpoints_in(tmp_path)] == [2, 4]
    make(tmp_path, "step6")
    assert [place.name for place in set_aside_later(tmp_path, 4)] == ["damaged-step6.2"]


def test_half_a_removal_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step4", "step6"):
        make(tmp_path, name)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("os.rmdir", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / "step4")
    assert [checkpoint.path.name for checkpoint in checkpoints_in(tmp_path)] == ["step6"]
    assert len(list(tmp_path.iterdir())) == 2
    finish_removals(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step6"]
    remove(tmp_path / "step4")  # which another machine has removed
    remove(tmp_path / "step6")
    assert list(tmp_path.iterdir()) == []


def test_sizes_alone_miss_what_hashes_find(tmp_path: Path) -> None:
    checkpoint = checkpoint_at(make(tmp_path, "step2"))
    _flip(tmp_path / "step2" / "config.yaml")
    assert checkpoint.damage(every_byte=False) is None
    assert checkpoint.damage() == "the content of config.yaml has changed"


def test_a_checkpoint_of_olmos_own_is_loaded_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "step2-unsharded")
    (tmp_path / "step2-unsharded" / MANIFEST).unlink()
    assert checkpoint_at(tmp_path / "step2-unsharded").step == 2
    assert "without verification" in caplog.text
    assert latest_checkpoint(tmp_path) is None, "ours all have a manifest"


def test_under_ddp_a_later_sharded_checkpoint_is_no_damaged_one(tmp_path: Path) -> None:
    for name in ("step2-unsharded", "step4"):
        make(tmp_path, name)
    latest = latest_checkpoint(tmp_path, sharded_too=False)
    assert latest is not None and latest.step == 2
    with pytest.raises(InputError, match="step4, later than step 2"):
        check_save_folder(tmp_path, latest, overwrite=False, goes_on=True, sharded_too=False)
