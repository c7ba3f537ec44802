"""Core: configuration, fingerprints, vectors, the tokenizer, and errors over a real socket."""

import re
from pathlib import Path

import grpc
import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from openbook_core.clients import EmbedderClient
from openbook_core.config import FrozenConfig, load_config, render_config
from openbook_core.errors import (
    ArgumentError,
    ConfigError,
    MismatchError,
    NotFoundError,
    OverloadedError,
    Reason,
    UnavailableError,
)
from openbook_core.fingerprint import Fingerprint, require_equal
from openbook_core.rpc.server import start_server
from openbook_core.tokenizer import Tokenizer
from openbook_core.vectors import decode_vectors, encode_vectors
from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL, resolve_model
from openbook_proto.v1 import common_pb2, embedder_pb2_grpc


class Inner(FrozenConfig):
    rate: float = 0.5


class Outer(FrozenConfig):
    steps: int = 3
    inner: Inner = Inner()


def test_an_unknown_key_names_the_nearest_right_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("inner: {rat: 1.0}")
    with pytest.raises(ConfigError, match=r"unknown key 'rat' in Inner; did you mean 'rate'"):
        load_config(Outer, path)


def test_overrides_win_and_their_origin_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("steps: 5")
    config, origin = load_config(Outer, path, ["inner.rate=0.25"])
    assert (config.steps, config.inner.rate) == (5, 0.25)
    shown = render_config(config, origin)
    assert f"steps: 5  # {path}" in shown
    assert "inner.rate: 0.25  # --set" in shown
    path.write_text("inner: {rate: 0.75}")
    whole = ["inner={rate: 0.25}"], ["inner={}"]
    shown, emptied = (render_config(*load_config(Outer, path, overrides)) for overrides in whole)
    assert shown.splitlines() == ["steps: 3  # default", "inner.rate: 0.25  # --set"]
    assert emptied.splitlines() == ["steps: 3  # default", "inner.rate: 0.5  # default"]


@pytest.mark.parametrize("override", ["steps", "steps=many", "steps.deeper=1", "inner=[1"])
def test_bad_overrides_are_refused(override: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("steps: 5")
    with pytest.raises(ConfigError):
        load_config(Outer, path, [override])


def test_a_configuration_that_is_no_readable_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml", tmp_path / "c.yaml" / "deeper"):
        (tmp_path / "c.yaml").write_text("steps: 5")
        with pytest.raises(ConfigError, match=str(path)) as refused:
            load_config(Outer, path)
        assert refused.value.field == "config"


def test_a_mismatch_names_each_field_with_both_sides() -> None:
    ours, theirs = Fingerprint({"a": 1, "b": {"c": 2}}), Fingerprint({"a": 1, "b": {"c": 3}})
    with pytest.raises(MismatchError, match=r"b\.c: here has 2, there has 3"):
        require_equal("embedder", ours, theirs, "here", "there")
    require_equal("embedder", ours, Fingerprint({"b": {"c": 2}, "a": 1}), "here", "there")


def test_vectors_travel_unchanged() -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    assert np.array_equal(decode_vectors(encode_vectors(vectors), "q"), vectors)
    half = vectors.astype(np.float16)
    assert np.array_equal(decode_vectors(encode_vectors(half), "q"), half.astype(np.float32))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (common_pb2.Vectors(data=b"1234", rows=1, dimension=1), "q.type"),
        (common_pb2.Vectors(data=b"123", rows=1, dimension=1, type=1), "q.data"),
        (common_pb2.Vectors(data=b"12345678", rows=1, dimension=2, type=1), "q.dimension"),
        (common_pb2.Vectors(data=np.float32("nan").tobytes(), rows=1, dimension=1, type=1), "q.data"),
    ],
)
def test_bad_vectors_are_refused_by_field(message: common_pb2.Vectors, field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        decode_vectors(message, "q", dimension=1)
    assert caught.value.field == field


def test_the_gguf_tokenizer_equals_its_saved_copy_and_keeps_markers_as_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(DEFAULT_MODEL)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    text = "a page about <|im_end|> in 2015,  Côte d'Ivoire"
    assert tokenizer.eos_id not in tokenizer.encode(text).tolist()
    assert tokenizer.encode("<|im_end|>", special=True).tolist() == [tokenizer.eos_id]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_another_rule_changes_the_fingerprint() -> None:
    vocabulary = {chr(i): n for n, i in enumerate(sorted(set(map(ord, pre_tokenizers.ByteLevel.alphabet()))))}
    plain, digits = (RawTokenizer(models.BPE(vocab=vocabulary, merges=[])) for _ in range(2))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert Tokenizer(plain).fingerprint != Tokenizer(digits).fingerprint


def test_a_missing_model_names_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENBOOK_WEIGHTS", str(tmp_path))
    with pytest.raises(Exception, match="OPENBOOK_WEIGHTS folder"):
        resolve_model("some/model")
    (tmp_path / "model").mkdir()
    assert resolve_model("some/model") == tmp_path / "model"
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert resolve_model("some/model") == tmp_path / "some" / "model"


def test_each_setting_of_the_weights_looks_in_its_own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("OPENBOOK_WEIGHTS", "hub")
    assert resolve_model(DEFAULT_EMBEDDER) == tmp_path
    assert asked == [DEFAULT_EMBEDDER]
    for setting in ("package", "auto"):
        monkeypatch.setenv("OPENBOOK_WEIGHTS", setting)
        assert (resolve_model(DEFAULT_EMBEDDER) / "config.json").is_file()
    assert resolve_model("somebody/else") == tmp_path
    assert asked == [DEFAULT_EMBEDDER, "somebody/else"]
    monkeypatch.setenv("OPENBOOK_WEIGHTS", "package")
    with pytest.raises(NotFoundError, match="somebody/else"):
        resolve_model("somebody/else")


class _Failing(embedder_pb2_grpc.EmbedderServicer):
    def Embed(self, request: object, context: grpc.ServicerContext) -> object:
        raise OverloadedError("the queue is full", retry_after_s=1.5, queue=7)

    def GetInfo(self, request: object, context: grpc.ServicerContext) -> object:
        raise KeyError("bug")


def test_every_reason_is_documented() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "errors.md"
    assert set(re.findall(r"`([A-Z_]+)`", guide.read_text())) == set(Reason)


def test_errors_keep_their_details_over_a_socket() -> None:
    server = start_server(
        lambda s: embedder_pb2_grpc.add_EmbedderServicer_to_server(_Failing(), s),
        host="127.0.0.1",
        port=0,
        services=["openbook_proto.v1.Embedder"],
    )
    try:
        with EmbedderClient(server.address) as client:
            with pytest.raises(OverloadedError, match="the queue is full") as caught:
                client.embed(["x"], "query")
            assert caught.value.retry_after_s == pytest.approx(1.5)
            assert caught.value.metadata == {"queue": "7"}
            with pytest.raises(Exception, match="KeyError"):
                client.info()
        port = int(server.address.rsplit(":", 1)[1])
        with pytest.raises(UnavailableError, match="port is in use") as taken:
            start_server(lambda s: None, host="127.0.0.1", port=port, services=[])
        assert taken.value.reason is Reason.PORT_IN_USE
    finally:
        server.stop(0)


def test_nobody_listening_is_unavailable_and_names_the_address() -> None:
    with EmbedderClient("127.0.0.1:1") as client, pytest.raises(UnavailableError, match="127.0.0.1:1"):
        client.embed(["x"], "query", timeout_s=3)
