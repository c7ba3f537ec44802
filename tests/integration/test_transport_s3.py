"""Publishing to and pulling from S3 over real sockets: a server that speaks S3, started here."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from openbook_core.errors import CorruptError, ForbiddenError, NotFoundError, PreconditionError, UnavailableError
from openbook_database.build.progress import Update
from openbook_database.testing import build_tiny_snapshot, tiny_rows, tree
from openbook_database.transport.publish import publish
from openbook_database.transport.pull import pull

PART = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = running.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield running
    running.stop()


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot whose document table is 12 MiB: three parts."""
    rows = tiny_rows(20)
    for row in rows:
        row["note"] = np.random.default_rng(len(row["text"])).bytes(320_000).hex()
    out = tmp_path_factory.mktemp("book") / "book"
    build_tiny_snapshot(out, rows=rows, shards=3, fields={"metadata": ("note",)})
    assert (out / "documents.arrow").stat().st_size > 2 * PART
    return out


@pytest.fixture
def bucket(server: ThreadedMotoServer, request: pytest.FixtureRequest) -> str:
    name = f"bucket-{abs(hash(request.node.name))}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def objects(bucket: str) -> dict[str, int]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", [])}


def test_the_round_trip_in_parts(book: Path, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/books/book"
    publish(book, url, part_bytes=PART)
    assert objects(bucket) == {f"books/book/{name}": len(data) for name, data in tree(book).items()}
    tag = boto3.client("s3").head_object(Bucket=bucket, Key="books/book/documents.arrow")["ETag"]
    assert tag.strip('"').endswith("-3"), "three parts"
    pull(url, tmp_path / "pulled")
    assert tree(tmp_path / "pulled") == tree(book)
    assert publish(book, url).reused


KILLED = """
import os, signal, sys
from openbook_database.transport.publish import publish
from openbook_database.transport.pull import pull

left = int(sys.argv[4])

def progress(update):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

{"publish": publish, "pull": pull}[sys.argv[1]](sys.argv[2], sys.argv[3], threads=2, progress=progress)
"""


def run_killed(verb: str, source: str, target: str, updates: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, verb, source, target, str(updates)], timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL


def test_killed_in_the_middle_both_sides_go_on(book: Path, bucket: str, tmp_path: Path) -> None:
    url, out = f"s3://{bucket}/book", tmp_path / "pulled"
    run_killed("publish", str(book), url, 9)
    assert "book/manifest.json" not in objects(bucket)
    with pytest.raises(PreconditionError, match="is not finished"):
        pull(url, out)
    done = publish(book, url)
    assert done.kept_bytes > 0 and done.sent_bytes > 0
    assert objects(bucket) == {f"book/{name}": len(data) for name, data in tree(book).items()}
    run_killed("pull", url, str(out), 9)
    assert not out.exists() and (tmp_path / "pulled.pulling").exists()
    pulled = pull(url, out)
    assert pulled.kept_bytes > 0 and pulled.sent_bytes > 0
    assert tree(out) == tree(book)


def test_two_publish_the_same_at_once(book: Path, bucket: str, tmp_path: Path) -> None:
    url, together = f"s3://{bucket}/book", Barrier(2, timeout=120)

    def run() -> None:
        waited = False

        def progress(update: Update) -> None:
            nonlocal waited
            if not waited:
                waited = True
                together.wait()

        publish(book, url, progress=progress)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run), pool.submit(run)]:
            future.result(timeout=300)
    pull(url, tmp_path / "pulled")
    assert tree(tmp_path / "pulled") == tree(book)
    assert objects(bucket) == {f"book/{name}": len(data) for name, data in tree(book).items()}


def test_a_damaged_object_is_named_and_mended_by_another_publish(book: Path, bucket: str, tmp_path: Path) -> None:
    url, name = f"s3://{bucket}/book", "shard-00001/tokens.bin"
    publish(book, url)
    data = bytearray((book / name).read_bytes())
    data[3] ^= 1
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key=f"book/{name}", Body=bytes(data))
    with pytest.raises(CorruptError, match=f"{url}/{name}: checksum .* the published file is damaged"):
        pull(url, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    client.delete_object(Bucket=bucket, Key=f"book/{name}")
    assert publish(book, url).sent_bytes == len(data)
    pull(url, tmp_path / "pulled")
    assert tree(tmp_path / "pulled") == tree(book)


def test_no_such_bucket(book: Path, server: ThreadedMotoServer, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="bucket"):
        publish(book, "s3://no-such-bucket/book", tries=2)
    with pytest.raises(NotFoundError, match="bucket"):
        pull("s3://no-such-bucket/book", tmp_path / "pulled", tries=2)


def test_no_permission(book: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ForbiddenError, match="the store does not allow it .*credentials"):
        publish(book, f"s3://{bucket}/book")


def test_the_server_goes_in_the_middle(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    going.start()
    host, port = going.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    boto3.client("s3").create_bucket(Bucket="going")
    publish(book, "s3://going/book")
    gone = False

    def stop(update: Update) -> None:
        nonlocal gone
        if not gone:
            gone = True
            going.stop()

    with pytest.raises(UnavailableError, match="tried 2 times. Run the same command again"):
        pull("s3://going/book", tmp_path / "pulled", threads=1, tries=2, progress=stop)
    assert gone and not (tmp_path / "pulled").exists()
