"""The one door for files: what is no file, too large, too deep or a bomb is a sentence, soon, and within memory."""

from __future__ import annotations

import ast
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES

import traces
from sim import catalog, scenario
from sim.cost.description import read_meta
from sim.cost.tables import read_table
from sim.results import files as results
from sim.speculation import rates
from sim.study import identity as made_of
from sim.study.sweep import grid, store
from sim.validate import against
from sim.validate.schedules import verdicts as schedules
from traces import documents, files, servegen
from traces.formats import Format
from traces.mapping.guess import guess, missing
from traces.mapping.survey import survey
from traces.mapping.table import mapped
from traces.schema import InputError
from traces.tokens import counter

ROOT = Path(__file__).resolve().parents[2]
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"".join(
    b"2023-11-16 18:00:%02d.0000000,%d,%d\n" % (at, 50 + at, 5 + at) for at in range(20)
)
VLLM = (
    b"INFO 08-21 10:00:05 [logger.py:41] Received request cmpl-a: prompt: 'a\\'b', params: SamplingParams(n=1, "
    b"max_tokens=5), prompt_token_ids: [1, 2], lora_request: None.\n"
)
SPAN = {"startTimeUnixNano": "1731000000500000000", "attributes": [
    {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "10"}},
    {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 5}}]}  # fmt: skip
SPANS = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}, indent=1).encode()
ANSWERS = b"".join(
    b'{"created": 171165279%d, "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}\n' % at
    for at in range(3)
)
LOG = b"".join(
    b'{"ts": "2026-01-01T00:00:0%dZ", "in": {"messages": [{"role": "user", "content": "hi"}]}, "n_out_tokens": 5}\n'
    % at
    for at in range(3)
)
LINES = b"".join(b'{"arrival_s": %d, "prompt_tokens": 5, "output_tokens": 3}\n' % at for at in range(2))
DRAFTED = json.dumps({"speculation": {"rate_by_position": [0.5, None], "found_by_position": [0.4]}}).encode()
SERVED = json.dumps(
    {"input_lens": [3, 4], "output_lens": [3, 2], "ttfts": [0.1, 0.2], "itls": [[0.1, 0.1], [0.1]],
     "start_times": [0.0, 1.0], "errors": ["", ""], "generated_texts": ["a", "b"]}
).encode()  # fmt: skip
POINT = b'{"point": 0, "reason": null, "stable": true, "summary": {"a": 1}, "final": true}\n'
CONFIG = json.dumps(
    {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
     "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 512,
     "rope_scaling": {"type": "linear", "factor": 2.0}}
).encode()  # fmt: skip
PROFILE = b'schema = 1\nname = "p"\ngpu = "h100"\ndevice = "d"\nkind = "measured"\nsource = "s"\ndate = "2025-01-01"\n'
GEMM = b"dtype,weight_dtype,k,n,tokens,us\nbf16,bf16,4096,6144,1,31.4\nbf16,bf16,4096,6144,2,31.5\n"


def table_bytes() -> bytes:
    out = io.BytesIO()
    pd.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [1, 2]}).to_parquet(out)
    return out.getvalue()


def tar_bytes() -> bytes:
    out = io.BytesIO()
    lengths = json.dumps({"0": {"input_tokens": "{45: 0.5, 46: 0.5}", "output_tokens": "{5: 1.0}"}}).encode()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in (
            ("chunk-0-trace.csv", b"0,1,1,Gamma,1,1\n600,1,1,Gamma,1,1\n"),
            ("chunk-0-dataset.json", lengths),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read_log(path: Path) -> object:
    """By the mapping that is guessed."""
    found = survey(path)
    if missing(assignments := guess(found, {})):
        raise InputError(f"{files.named(path)}: no column was taken; there are {files.named(found.names)}")
    return traces.read(path, format=Format("mapped", lambda source: mapped(source, assignments), None, ""))


def read_scenario(path: Path) -> object:
    return scenario.build(scenario.read(path))


def read_gpu(path: Path) -> object:
    return catalog.load_gpu(str(path))


def read_model(path: Path) -> object:
    return catalog.load_model(str(path))


def read_acceptance(path: Path) -> object:
    return rates.acceptance_rates(str(path)), rates.found_shares(str(path))


GPU, MODEL = (ROOT / "sim" / "catalog" / name for name in ("gpus/h100.toml", "models/qwen3-8b.toml"))
READERS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "trace, CSV": ("a.csv", AZURE, traces.read),
    "trace, gzip": ("a.csv.gz", gzip.compress(AZURE), traces.read),
    "trace, xz": ("a.csv.xz", lzma.compress(AZURE), traces.read),
    "trace, JSON Lines": ("a.jsonl", LINES, traces.read),
    "trace, Parquet": ("a.parquet", table_bytes(), traces.read),
    "trace, vLLM's log": ("a.log", VLLM, traces.read),
    "trace, spans": ("a.json", SPANS, traces.read),
    "trace, answers": ("a.jsonl", ANSWERS, traces.read),
    "log of any shape": ("a.jsonl", LOG, read_log),
    "log, CSV": ("a.csv", b"ts,messages,n_out_tokens\n1,hello there,5\n2,hello,6\n", read_log),
    "ServeGen": ("a.tar.gz", tar_bytes(), servegen.read_clients),
    "scenario": ("a.toml", scenario.dump(scenario.Scenario()).encode(), read_scenario),
    "GPU": ("gpu.toml", GPU.read_bytes(), read_gpu),
    "model": ("m.toml", MODEL.read_bytes(), read_model),
    "config.json": ("config.json", CONFIG, read_model),
    "acceptance": ("a.json", DRAFTED, read_acceptance),
    "results": ("r.json", SERVED, against.read),
    "summary": ("s.json", DRAFTED, results.read_json),
    "table": ("t.parquet", table_bytes(), results.read_parquet),
    "profile": ("profile.toml", PROFILE, read_meta),
    "profile's table": ("gemm.csv", GEMM, read_table),
    "points, CSV": ("p.csv", b"rate,policy\n5,sjf\n10,chunked\n", grid.read_points),
    "points, TOML": ("p.toml", b"[[point]]\nrate = 5\n[[point]]\npolicy = 'sjf'\n", grid.read_points),
    "journal": ("points.jsonl", POINT, lambda path: store.finished(path.parent)),
    "sweep": ("sweep.toml", b"points = 1\nseeds = [0]\n", lambda path: store.question_of(path.parent)),
    "digest": ("any.csv", AZURE, made_of.digest),
}
"""Of every kind of file that the product reads: a name, a valid one, and its reader."""

kinds = pytest.mark.parametrize("kind", READERS)


def refused(path: Path, read: Callable[[Path], object]) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@kinds
def test_the_samples_are_read(tmp_path: Path, kind: str) -> None:
    name, data, read = READERS[kind]
    (tmp_path / name).write_bytes(data)
    read(tmp_path / name)


@kinds
def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    name, _, read = READERS[kind]
    path = tmp_path / name
    if kind not in ("ServeGen", "config.json", "digest"):
        path.mkdir()
        assert "folder" in refused(path, read) or "journal" in kind
        path.rmdir()
    os.mkfifo(path)  # whoever opens it waits until somebody writes
    assert "is a pipe, not a file" in refused(path, read)
    path.unlink()
    path.symlink_to("/dev/zero")  # whoever reads it never comes to an end
    assert "is a device, not a file" in refused(path, read)
    path.unlink()
    path.symlink_to(path)
    assert "symbolic links" in refused(path, read)


@kinds
def test_no_permission_is_told(tmp_path: Path, kind: str) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    name, data, read = READERS[kind]
    (tmp_path / name).write_bytes(data)
    (tmp_path / name).chmod(0)
    assert "Permission denied" in refused(tmp_path / name, read)


@pytest.mark.parametrize("kind", [one for one in READERS if one not in ("journal", "sweep", "profile's table")])
def test_a_name_that_no_system_takes_is_told_in_short(tmp_path: Path, kind: str) -> None:
    name, _, read = READERS[kind]
    text = refused(tmp_path / f"{'x' * 5000}{name}", read)
    assert "File name too long" in text
    assert len(text) < 500


BRACKETS = b"[" * 2000 + b"]" * 2000
DEEP = {".toml": b"x = " + BRACKETS, ".json": BRACKETS, ".jsonl": b'{"a": ' + BRACKETS + b"}\n"}


@pytest.mark.parametrize("kind", [one for one, (name, *_) in READERS.items() if Path(name).suffix in DEEP])
def test_what_is_nested_too_deeply_is_told(tmp_path: Path, kind: str) -> None:
    name, _, read = READERS[kind]
    (tmp_path / name).write_bytes(DEEP[Path(name).suffix])
    text = refused(tmp_path / name, read)
    assert "nest" in text or kind == "journal"


@pytest.mark.parametrize("depth", [documents.MAX_DEPTH - 1, documents.MAX_DEPTH + 1])
def test_how_deep_a_document_may_be(depth: int) -> None:
    text = "[" * depth + "]" * depth
    for parse, shape in ((documents.json_of, text), (documents.toml_of, f"x = {text[1:-1]}")):
        if depth < documents.MAX_DEPTH:
            parse(shape, "it")
        else:
            with pytest.raises(InputError, match=f"more than {documents.MAX_DEPTH} deep"):
                parse(shape, "it")


@pytest.mark.parametrize(
    "text",
    ["{}=1".format(".".join(["a"] * 20_000)), "[{}]".format(".".join(["'a'"] * 20_000)), "a.'!'." * 10_000 + "b = 1"],
)
def test_a_key_of_many_parts_takes_no_time(text: str) -> None:
    """`tomllib` takes the cube of their number: seconds for a few thousand, days for these."""
    started = time.process_time()
    with pytest.raises(InputError, match="deep"):
        documents.toml_of(text, "it")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", ["9" * 5000, "[9, " + "9" * 5000 + "]", '{"a": ' + "9" * 5000 + "}"])
def test_a_number_of_thousands_of_digits_is_told(text: str) -> None:
    with pytest.raises(InputError, match="thousands of digits"):
        documents.json_of(text, "it")
    with pytest.raises(InputError, match="thousands of digits"):
        documents.toml_of("x = " + "9" * 5000, "it")


def test_more_bytes_than_such_a_file_has_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with path.open("wb") as file:
        file.truncate(100 * 2**30)  # a hole: it takes no room
    for read in (documents.toml, documents.json_file, traces.read, files.whole):
        with pytest.raises(InputError, match=r"bytes; such a file has at most|more than 8 GiB|neither text"):
            read(path)


LIMITED = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6_000_000 * 1024, 6_000_000 * 1024))
from pathlib import Path
import traces
from traces import servegen
from traces.schema import InputError
told = {}
for name in sys.argv[1:]:
    try:
        found = servegen.read_clients(name) if ".tar" in name else traces.read(name)
        told[Path(name).name] = f"{len(found)} rows"
    except InputError as error:
        told[Path(name).name] = str(error)
# Not getrusage, which counts what the process that started this one had.
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
told["peak"] = int(peak) * 1024
print(json.dumps(told))
"""


def test_bombs_and_plain_files_within_six_gigabytes(tmp_path: Path) -> None:
    """`ulimit -v 6000000`: what is small is read, and what unpacks to gigabytes is refused long before."""
    (tmp_path / "plain.csv").write_bytes(AZURE)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(AZURE))
    zeros = b"\n" * 2**20
    with gzip.open(tmp_path / "bomb.csv.gz", "wb", compresslevel=1) as file:
        file.write(AZURE)
        for _ in range(200):
            file.write(zeros)
    with lzma.open(tmp_path / "bomb.csv.xz", "wb", preset=0) as file:
        file.write(AZURE)
        for _ in range(200):
            file.write(zeros)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("chunk-0-trace.csv")
        member.size = 200 * 2**20
        archive.addfile(member, io.BytesIO(zeros * 200))
    pd.DataFrame({"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]}).to_parquet(tmp_path / "p.parquet")
    names = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("peak") < 10**9
    assert [told.pop(name) for name in ("plain.csv", "packed.csv.gz", "p.parquet")] == ["20 rows", "20 rows", "1 rows"]
    assert len(told) == 3
    for text in told.values():
        assert "unpacks to more than 100 times its size" in text


def test_a_parquet_that_says_one_value_a_billion_times_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    chunk = pa.table({"prompt_tokens": pa.array([1] * 2**20)})
    with parquet.ParquetWriter(path, chunk.schema, compression="zstd") as writer:
        for _ in range(4):
            writer.write_table(chunk, row_group_size=2**20)
    assert path.stat().st_size < 2**20
    limit = files.MAX_FILE_BYTES
    try:
        files.MAX_FILE_BYTES = 2**24  # half of what it holds
        assert "unpacks to more than 16 MiB" in refused(path, documents.table)
    finally:
        files.MAX_FILE_BYTES = limit
    assert documents.table(path).num_rows == 2**22


def test_a_safetensors_header_of_any_declared_size_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from backend.model.loader import load_checkpoint

    here = ROOT / "backend" / "pair" / "byte-draft"
    (tmp_path / "config.json").write_bytes((here / "config.json").read_bytes())
    shard = tmp_path / "model.safetensors"
    good = (here / "model.safetensors").read_bytes()
    huge = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    for data in (
        b"",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + good[8:],
        (90 * 2**20).to_bytes(8, "little") + good[8:],
        len(huge).to_bytes(8, "little") + huge + bytes(4),
        (4000).to_bytes(8, "little") + b"[" * 4000,
        good[:-100],
        good[:8] + bytes(len(good) - 8),
    ):
        shard.write_bytes(data)
        assert "model.safetensors" in refused(tmp_path, load_checkpoint)
    shard.unlink()
    os.mkfifo(shard)
    assert "neither model.safetensors" in refused(tmp_path, load_checkpoint)


def test_a_tokenizer_is_read_through_the_door(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    for data in (b"", b"{}", b"\xff\xfe", BRACKETS, b'{"model": 3}'):
        path.write_bytes(data)
        assert str(path) in refused(path, counter)
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe" in refused(path, counter)


# ---- random damage --------------------------------------------------------------------------------------------------

VALUES = [
    *(b"1e308", b"-1", b"0", b"nan", b"inf", b"1e-300", b"1e999", b"NaN", b"Infinity", b"18446744073709551616"),
    *(b"9" * 30, b"9" * 5000, b"true", b"null", b'""', b"[]", b"{}", b"[1,2]", b'"\\ud800"', b"1979-05-27T07:32:00Z"),
    *(b"\x00", b"\xff\xfe", b"\r", b'"', b"." * 200, b"a." * 150, b"[" * 300, b'{"a":' * 300),
]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A kind of file, and a valid one with some bytes replaced, taken out or put in; or any bytes."""
    kind = draw(st.sampled_from(list(READERS)))
    data = READERS[kind][1]
    if draw(st.integers(0, 9)) == 0:
        return kind, draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        lost = draw(st.sampled_from([0, 1, 1, 4, 20, len(data)]))
        data = (
            data[:at]
            + draw(st.one_of(st.just(b""), st.sampled_from(VALUES), st.binary(max_size=3)))
            + data[at + lost :]
        )
    return kind, data


@settings(max_examples=EXAMPLES or 250)
@given(damaged())
def test_damage_is_read_or_refused_and_nothing_else(tmp_path: Path, case: tuple[str, bytes]) -> None:
    kind, data = case
    name, _, read = READERS[kind]
    (tmp_path / name).write_bytes(data)
    told = ""
    try:
        read(tmp_path / name)
    except InputError as error:
        told = str(error)
    finally:
        (tmp_path / name).unlink()
    assert "\n" not in told


# ---- nobody goes around it ------------------------------------------------------------------------------------------

READING = {"open", "read_text", "read_bytes", "read_csv", "read_parquet", "read_table", "read_schema", "read_metadata",
           "safe_open", "from_file", "fromfile", "memmap"}  # fmt: skip
PARSING = {("json", "load"), ("json", "loads"), ("tomllib", "load"), ("tomllib", "loads"), ("pickle", "load"),
           ("pickle", "loads"), ("np", "load")}  # fmt: skip
DOORS = {"traces/files.py", "traces/documents.py"}
AROUND = {
    "traces/source.py": "`tables.read_csv`, ours, which takes `files.whole`",
    "traces/tables.py": "Arrow parses bytes that `files.whole` gave",
    "traces/write.py": "writes",
    "sim/cli/guard.py": "opens /dev/null",
    "sim/results/transaction.py": "the lock's file",
    "sim/results/files.py": "writes",
    "sim/results/run_id.py": "the footer of a file that `files.plain` opened",
    "sim/report/sweep/folder.py": "`files.read_parquet`, ours",
    "sim/report/templates.py": "the package's own style and script",
    "sim/study/sweep/store.py": "appends to the journal, which is read by `files.content`",
    "sim/results/tables.py": "`files.read_parquet`, ours, which takes `documents.frame`",
    "sim/validate/store.py": "the same",
    "sim/cost/profile.py": "`read_table`, ours, which takes `files.text`",
    "backend/bench/record.py": "a digest of the package's own source",
    "backend/pair/corpus.py": "texts of this Python's own library",
    "backend/kernels/aot.py": "what its own subprocess prints",
    "backend/model/loader.py": "safetensors maps what `files.is_file` found to be one; its header is checked in Rust",
    "sim/engines/drivers/vllm_v1.py": "runs in another environment, and reads what `sim/engines/pipe.py` writes",
    "traces/version.py": "the package's own pyproject.toml",
    "sim/study/plan/journal.py": "its own lines, appended and read again under a lock",
    **{
        f"backend/prove/{name}.py": "what its own stages write, in its own working folder"
        for name in ("box", "command", "folder", "outcomes", "run", "stages", "smoke/driver")
    },
    "calibrate/device.py": "/proc/cpuinfo, and a digest of the package's own source",
    "calibrate/journal.py": "writes; copies its own settings",
    "calibrate/collectives.py": "what its own subprocesses print",
    "calibrate/messages.py": "what it wrote to its own subprocesses",
}


def around(path: Path) -> list[str]:
    """Calls of a file that read or parse by themselves."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called: Any = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            base = getattr(getattr(called, "value", None), "id", "")
            if name in READING or (base, name) in PARSING:
                found.append(ast.unparse(node))
    return found


def test_nothing_reads_a_file_but_through_the_door() -> None:
    paths = [path for layer in ("traces", "sim", "backend", "calibrate") for path in (ROOT / layer).rglob("*.py")]
    users = {path.relative_to(ROOT).as_posix(): calls for path in paths if (calls := around(path))}
    assert {name: calls for name, calls in users.items() if name not in DOORS and name not in AROUND} == {}
    assert set(AROUND) <= set(users), "an exception that is none any more"


def test_the_search_for_readers_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("import json\njson.load(open('x'))\nPath('x').read_text()\npd.read_csv('x')\nfiles.text(p)\n")
    assert set(around(path)) == {"json.load(open('x'))", "open('x')", "Path('x').read_text()", "pd.read_csv('x')"}


def test_recorded_schedules_come_through_the_door(tmp_path: Path) -> None:
    path = tmp_path / "a.scenario.json"
    path.write_bytes(BRACKETS)
    assert "nested" in refused(path, schedules.replay)
