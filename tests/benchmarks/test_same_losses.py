"""The comparison of losses before and after a change: of a package as it is, and with its router changed on purpose."""

import json
import subprocess
from pathlib import Path

import pytest
import same_losses
import small_runs
from same_losses import Comparison, Row, compare


def test_differences_are_relative_and_the_first_step_is_told() -> None:
    assert compare([1.0, 2.0], [1.0, 2.0]) == Comparison(0.0, None)
    assert compare([1.0, 2.0, 4.0], [1.0, 2.5, 4.0]) == Comparison(0.2, 2)
    assert compare([0.0], [0.0]) == Comparison(0.0, None)
    with pytest.raises(ValueError):
        compare([1.0], [1.0, 2.0])


def test_each_precision_has_its_tolerance() -> None:
    exact, off = {"cross-entropy": [6.0]}, {"cross-entropy": [6.0 * (1 + 1e-4)]}
    before = {("dense", precision): exact for precision in small_runs.PRECISIONS}
    after = {("dense", precision): off for precision in small_runs.PRECISIONS}
    row = Row.of("a change", ("a", before), ("b", after))
    (told,) = row.too_large()
    assert told.startswith("a change: dense, fp32: cross-entropy differs by 1.0e-04, more than")


@pytest.mark.slow
def test_a_changed_loss_is_found_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a repository of its own, so that there is a revision with the code as it is now
    repository = tmp_path / "repository"
    package = Path(small_runs.__file__).parent.parent / "olmoe_parrots"
    repository.mkdir()
    subprocess.run(["cp", "-r", str(package), str(repository)], check=True)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "as it is")
    router = repository / "olmoe_parrots" / "moe" / "router.py"
    text = router.read_text()
    changed = text.replace("logits_TE.softmax(dim=-1)", "(logits_TE * 1.01).softmax(dim=-1)")
    assert changed != text
    router.write_text(changed)
    git("commit", "-q", "-a", "-m", "a router that differs")
    monkeypatch.setattr(small_runs, "REPOSITORY", repository)
    options = ["--output", str(tmp_path), "--steps", "3", "--threads", "1", "--cases", "dense", "MoE"]
    assert same_losses.main(["HEAD~1", "HEAD", *options]) == 1
    rows = [json.loads(line) for line in (tmp_path / "same_losses.jsonl").read_text().splitlines()]
    found = {(row["case"], row["precision"]): row for row in rows}
    assert len(found) == len(rows) == 4
    for precision in small_runs.PRECISIONS:
        for metric in ("cross-entropy", "gradient norm"):
            assert found["dense", precision][metric] == {"largest": 0.0, "first": None}
    assert found["MoE", "fp32"]["cross-entropy"]["first"] == 1
    assert found["MoE", "fp32"]["load balancing"]["largest"] > 1e-5
    report = (tmp_path / "same_losses.md").read_text()
    assert "a router that differs | = | " in report and "MoE, fp32: load balancing differs" in report


def test_an_unknown_revision_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no-such-branch: no such revision"):
        same_losses.main(["no-such-branch", "--output", str(tmp_path)])
