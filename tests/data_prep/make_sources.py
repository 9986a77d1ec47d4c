"""Local files in the schema that each source of the shipped mixtures has on the hub, filled with generated text.

    python tests/data_prep/make_sources.py DIR --mixture natural_language --tokens 4000000 --seed 0

writes DIR/SOURCE/… as `python -m data_prep natural_language --local DIR --tokens 4000000` reads it: column names and
types, nesting, file formats, compression and file names are the hub's; texts are sentences of English words, drawn with
the frequencies they have in Python's documentation, between paragraphs of it. Every row is unique. The same arguments
give the same rows.

Scaled down a thousandfold and more, the paper's smallest sources are asked for less than a document.
`--least-share 0.01 --write-mixture FILE` raises small shares to a hundredth, divides all by their sum and writes that
mixture.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import source_rows as rows
import yaml
from source_rows import SCHEMAS, Row, Text

from data_prep.mixture import Mixture, Source, largest_remainder, load_mixture
from data_prep.templates import TEMPLATES

# Mistral's tokenizer makes a token of at most about five characters of these texts. Half as much again is written for
# what is held out and for the part that is cut.
CHARACTERS = 5.0
MARGIN = 1.5
# What every source holds at least: a smaller share than this of a small mixture would be a document or two.
LEAST_TOKENS = 2000
_FILES = 3  # of a source with a tenth of the mixture or more, so that the order of units means something

Make = Callable[[Text, int], Row]
# For each source: how its rows are made, and its file's name as on the hub, {i} being the number of the file of {n}.
SOURCES: dict[str, tuple[Make, str]] = {
    "fineweb_edu": (rows.fineweb_edu, "sample/100BT/{i:03d}_00000.parquet"),
    "cosmopedia": (rows.cosmopedia, "data/web_samples_v1/train-{i:05d}-of-{n:05d}.parquet"),
    "wikipedia": (rows.wikipedia, "20231101.en/train-{i:05d}-of-{n:05d}.parquet"),
    "trivia_qa": (rows.trivia_qa, "rc.nocontext/train-{i:05d}-of-{n:05d}.parquet"),
    "nq_open": (rows.nq_open, "nq_open/train-{i:05d}-of-{n:05d}.parquet"),
    "hotpot_qa": (rows.hotpot_qa, "fullwiki/train/{i:04d}.parquet"),
    "web_questions": (rows.web_questions, "data/train-{i:05d}-of-{n:05d}.jsonl.gz"),
    "complex_web_questions": (rows.complex_web_questions, "complexwebquestions_train/train/{i:04d}.parquet"),
    "arc_challenge": (rows.arc, "ARC-Challenge/train-{i:05d}-of-{n:05d}.parquet"),
    "arc_easy": (rows.arc, "ARC-Easy/train-{i:05d}-of-{n:05d}.parquet"),
    "commonsense_qa": (rows.commonsense_qa, "data/train-{i:05d}-of-{n:05d}.arrow"),
    "hellaswag": (rows.hellaswag, "default/train/{i:04d}.parquet"),
    "openbook_qa": (rows.openbook_qa, "main/train-{i:05d}-of-{n:05d}.parquet"),
    "piqa": (rows.piqa, "plain_text/train/{i:04d}.parquet"),
    "social_i_qa": (rows.social_i_qa, "default/train/{i:04d}.parquet"),
    "winogrande": (rows.winogrande, "winogrande_xl/train/{i:04d}.parquet"),
    "proof_pile_arxiv": (rows.proof_pile, "arxiv/train/arXiv_{i:03d}.jsonl.zst"),
    "proof_pile_open_web_math": (rows.proof_pile, "open-web-math/train/owm_{i:03d}.jsonl.zst"),
    "proof_pile_algebraic_stack": (rows.proof_pile, "algebraic-stack/train/lean{i:04d}.jsonl.zst"),
    "open_math_instruct": (rows.open_math_instruct, "correct_solutions/train.jsonl"),
    "meta_math_qa": (rows.meta_math_qa, "MetaMathQA-395K.json"),
    "gsm8k": (rows.gsm8k, "main/train-{i:05d}-of-{n:05d}.parquet"),
    "math": (rows.math, "algebra/train-{i:05d}-of-{n:05d}.parquet"),
    "svamp": (rows.svamp, "train.json"),
}


def raised(mixture: Mixture, least: float) -> Mixture:
    """The mixture with every share raised to at least `least`, and all divided by their sum."""
    shares = [max(source.share or 0.0, least) for source in mixture.sources]
    sources = (replace(s, share=share / sum(shares)) for s, share in zip(mixture.sources, shares, strict=True))
    return replace(mixture, sources=tuple(sources))


def make_sources(folder: Path, mixture: Mixture, tokens: int, seed: int = 0) -> dict[str, list[Path]]:
    """Write the files of each source of kind dataset so that the mixture, scaled to `tokens`, can be filled from them.

    They also hold the validation sequences that the mixture asks for, at most a fifth of `tokens`. Returns the files by
    source.
    """
    shares = {source.name: source.share or 0.0 for source in mixture.sources}
    validation = (mixture.validation.sequences or 0) * mixture.validation.sequence_length
    asked = largest_remainder(tokens + min(validation, tokens // 5), shares)
    datasets = [source for source in mixture.sources if source.kind == "dataset"]
    return {
        source.name: make_source(folder, source, max(asked[source.name], LEAST_TOKENS), seed) for source in datasets
    }


def make_source(folder: Path, source: Source, tokens: int, seed: int = 0) -> list[Path]:
    """Write one source's files, in all a good deal more than `tokens` tokens of documents."""
    _, pattern = SOURCES[source.name]
    files = _FILES if (source.share or 0) > 0.1 and "{i" in pattern else 1
    paths = []
    made = _rows(source, tokens * CHARACTERS * MARGIN, seed)
    found = list(made)
    for i in range(files):
        path = folder / source.name / pattern.format(i=i, n=files)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, found[i * len(found) // files : (i + 1) * len(found) // files], SCHEMAS.get(source.name))
        paths.append(path)
    return paths


def _rows(source: Source, characters: float, seed: int) -> Iterator[Row]:
    """Rows until their documents have that many characters, all of them different."""
    make, _ = SOURCES[source.name]
    text, seen = Text(f"{seed} {source.name}"), set()
    i = 0
    while characters > 0:
        row = make(text, i)
        document, _ = TEMPLATES[source.template](row)
        i += 1
        if document not in seen:
            seen.add(document)
            characters -= len(document)
            yield row


def write_rows(path: Path, found: list[Row], columns: dict[str, pa.DataType] | None) -> None:
    """Write rows in the format that the file's suffix names; `columns` are the types for parquet and arrow."""
    if path.suffix in (".parquet", ".arrow"):
        table = pa.Table.from_pylist(found, schema=pa.schema(columns))
        if path.suffix == ".parquet":
            pq.write_table(table, path, row_group_size=1000)
            return
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        return
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()
    if path.name.endswith(".json"):
        lines = json.dumps(found, ensure_ascii=False).encode()
    elif path.suffix == ".gz":
        lines = gzip.compress(lines, mtime=0)
    elif path.suffix == ".zst":
        import zstandard

        lines = zstandard.compress(lines)
    path.write_bytes(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--mixture", default="natural_language", metavar="NAME", help="a mixture's name or file")
    parser.add_argument("--tokens", type=int, default=4_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least-share", type=float, default=0.0, metavar="X")
    parser.add_argument("--write-mixture", type=Path, metavar="FILE")
    options = parser.parse_args()
    mixture = raised(load_mixture(options.mixture), options.least_share)
    if options.write_mixture:
        options.write_mixture.write_text(yaml.safe_dump(mixture.scaled(options.tokens).as_dict(), sort_keys=False))
    made = make_sources(options.folder, mixture, options.tokens, options.seed)
    for name, paths in made.items():
        size = sum(path.stat().st_size for path in paths)
        print(f"{name}: {len(paths)} file(s), {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
