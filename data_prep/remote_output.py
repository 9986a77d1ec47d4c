"""A dataset folder made on this machine and sent to `s3://`: the manifest goes last, so that none is half there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import MANIFEST, TOKENIZER, Manifest, sha256_of


@contextlib.contextmanager
def sent_to(output: str, work: Path | None) -> Iterator[Path]:
    """Yields the folder to make the dataset in; when that went well and `output` is an `s3://` address, sends it there.

    Files that are there already with the same content are not sent again. Raises InputError where another dataset is
    there, before anything is made.
    """
    from olmoe_parrots import remote

    work = folder_of(output, work)
    if not remote.is_remote(output):
        yield work
        return
    _refuse_unwritable(output)
    yield work
    _refuse_other_dataset(work, output)
    _send(work, output)


def folder_of(output: str, work: Path | None) -> Path:
    """The local folder that a dataset is made in. Raises InputError where `work` is missing or of no use."""
    from olmoe_parrots import remote

    if not remote.is_remote(output):
        if work is not None:
            raise InputError("--work", f"{output} is a local folder", "leave --work out")
        return Path(output)
    if work is None:
        remedy = "name a local folder with room for it, which a second run goes on from"
        raise InputError("--work", f"it is needed to make a dataset for {output}", remedy)
    return work


def _refuse_unwritable(output: str) -> None:
    """Write one small object, then remove it, so that wrong credentials are known before hours of work."""
    from olmoe_parrots import remote

    address = remote.join(output, ".writable")
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe")
        probe.write_bytes(b"\n")
        remote.upload(probe, address, sha256_of(probe))
    remote.remove(address)


def _refuse_other_dataset(work: Path, output: str) -> None:
    from olmoe_parrots import remote

    address = remote.join(output, MANIFEST)
    if not remote.exists(address):
        return
    there = json.loads(remote.read_bytes(address)).get("mixture")
    here = json.loads((work / MANIFEST).read_text(encoding="utf-8"))["mixture"]
    if there != here:
        remedy = "choose another --output, or remove it there"
        raise InputError(output, "it holds a dataset of other inputs or settings", remedy)


def _send(work: Path, output: str) -> None:
    from tqdm import tqdm

    from olmoe_parrots import remote

    manifest = Manifest.load(work)
    names = [TOKENIZER, *(report.path for report in manifest.reports)]
    for file in manifest.files:
        names += [file.path, *([file.boundaries] if file.boundaries else [])]
    names += sorted(os.path.relpath(path, work) for path in (work / "documents").glob("*/*.jsonl.gz"))
    sizes = {name: (work / name).stat().st_size for name in [*names, MANIFEST]}
    sent = 0
    with tqdm(total=sum(sizes.values()), desc="sending", unit="B", unit_scale=True) as bar:
        for name in [*names, MANIFEST]:
            sent += remote.upload(work / name, remote.join(output, name), sha256_of(work / name))
            bar.update(sizes[name])
    print(f"{sent} of {len(sizes)} files sent to {output}", file=sys.stderr)
