"""Rows of one file, a few at a time: JSON lines, JSON arrays, parquet and arrow, plain or compressed.

Rows that are no documents are counted and passed over; a file that cannot be read to its end is an InputError.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from olmoe_parrots.errors import InputError

Row = dict[str, Any]
Count = Callable[[str], None]
DATA_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
_BATCH_ROWS = 256
_CHUNK = 1 << 20
# Compressed bytes that are decompressed at once: little, since they may grow a thousandfold.
_PIECE = 1 << 12


def read_rows(
    stream: BinaryIO, name: str, columns: tuple[str, ...], needed: tuple[str, ...], count: Count
) -> Iterator[tuple[int, Row]]:
    """(number, row) of each row of a file, numbered from 1; for JSON lines the number is the line's.

    Args:
        stream: the file's bytes, from a position of 0; seekable for parquet.
        name: the file's name: its suffix decides how it is read.
        columns: read these only, where the format allows; () for all.
        needed: columns that a parquet or arrow file must have.
        count: told the reason for each row that is left out.

    Raises InputError naming the file when it is damaged or lacks a needed column.
    """
    import pyarrow

    lowered = name.lower()
    try:
        if lowered.endswith(".parquet"):
            yield from _parquet_rows(stream, name, columns, needed, count)
        elif lowered.endswith(".arrow"):
            yield from _arrow_rows(stream, name, columns, needed, count)
        else:
            yield from _json_rows(_decompressed(stream, lowered), name, count)
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(name, f"it cannot be read ({what})", "replace the file or take it away") from None


def _decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return gzip.open(stream, "rb")  # type: ignore[return-value]
    return io.BufferedReader(_ZstdFile(stream), _CHUNK) if name.endswith(".zst") else stream


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a zstd file; unlike zstandard's own reader it raises EOFError for a truncated one."""

    def __init__(self, stream: BinaryIO) -> None:
        import zstandard

        self._stream, self._error = stream, zstandard.ZstdError
        self._start = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._compressed, self._ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = self._stream.read(_PIECE)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError("the compressed file ended before its end mark was reached")
                    return 0
            self._frame = self._frame or self._start()
            try:
                self._ready = self._frame.decompress(self._compressed)
            except self._error as error:
                raise OSError(str(error)) from None
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _json_rows(stream: BinaryIO, name: str, count: Count) -> Iterator[tuple[int, Row]]:
    """Lines of JSON; a .json file may also hold one array of objects, which is read element by element."""
    if ".json" in name.lower() and ".jsonl" not in name.lower():
        reader = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
        if reader.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            yield from _array_rows(reader, name, count)
            return
        stream = reader
    yield from _line_rows(stream, count)


def _line_rows(stream: Iterable[bytes], count: Count) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            count("invalid UTF-8")
            continue
        except (ValueError, RecursionError):
            count("invalid JSON")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            count("no text")


def _array_rows(stream: BinaryIO, name: str, count: Count) -> Iterator[tuple[int, Row]]:
    """The elements of one JSON array. Memory holds a chunk and an element. Damage anywhere is damage of the file."""
    decode = json.JSONDecoder().raw_decode
    text = codecs.getreader("utf-8-sig")(stream)
    buffer, number, ended, opened = "", 0, False, False
    while not ended:
        try:
            chunk = text.read(_CHUNK)
        except UnicodeDecodeError as error:
            raise OSError(f"invalid UTF-8: {error}") from None
        buffer, position, final = buffer + chunk, 0, not chunk
        while not ended:
            start = _skip(buffer, position, " \t\r\n" if not opened else " \t\r\n,")
            if start == len(buffer):
                break
            if not opened or buffer[start] == "]":
                opened, ended, position = True, opened, start + 1
                continue
            try:
                row, end = decode(buffer, start)
            except (ValueError, RecursionError):
                break
            if end == len(buffer) and not final:
                break  # a number may go on in the next chunk
            position, number = end, number + 1
            if isinstance(row, dict):
                yield number, row
            else:
                count("no text")
        buffer = buffer[position:]
        if final and not ended:
            raise EOFError(f"its array is not valid JSON after element {number}")


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _parquet_rows(
    stream: BinaryIO, name: str, columns: tuple[str, ...], needed: tuple[str, ...], count: Count
) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)
    wanted = _present(file.schema_arrow.names, name, columns, needed)
    batches = file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False)
    yield from _numbered(batches, count)


def _arrow_rows(
    stream: BinaryIO, name: str, columns: tuple[str, ...], needed: tuple[str, ...], count: Count
) -> Iterator[tuple[int, Row]]:
    """An arrow stream, which is what `datasets` writes, or an arrow file."""
    import pyarrow

    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        file = pyarrow.ipc.open_file(stream)
        schema, batches = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        reader = pyarrow.ipc.open_stream(stream)
        schema, batches = reader.schema, iter(reader)
    wanted = _present(schema.names, name, columns, needed)
    slices = (b.slice(i, _BATCH_ROWS) for b in batches for i in range(0, b.num_rows, _BATCH_ROWS))
    yield from _numbered((piece.select(wanted) if wanted is not None else piece for piece in slices), count)


def _present(found: list[str], name: str, columns: tuple[str, ...], needed: tuple[str, ...]) -> list[str] | None:
    missing = [column for column in dict.fromkeys((*needed, *columns)) if column not in found]
    if missing:
        what = f"it has no column {', '.join(missing)}, only {', '.join(found)}"
        raise InputError(name, what, "bring the dataset's own file, or correct the source's columns or template")
    return list(columns) if columns else None


def _numbered(batches: Iterable[Any], count: Count) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in batches:
        for row in _rows_of(batch):
            number += 1
            if row is None:
                count("invalid UTF-8")
            else:
                yield number, row


def _rows_of(batch: Any) -> Iterator[Row | None]:
    """The rows of a batch, None for one whose text is not UTF-8, which parquet does not check."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None
