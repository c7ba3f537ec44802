"""The generator over HTTP against a retriever on a real socket."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn

from openbook_core.errors import ArgumentError, NotFoundError, OpenbookError, PreconditionError, Reason
from openbook_generator.api import MAX_BODY_BYTES, create_app
from openbook_generator.service import Generator

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "generator"))
from generator_fakes import FakeRetriever, M, byte_tokenizer, make_generator, reference, tiny_model


class Served:
    """A generator behind a real HTTP server on a free port."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._server = uvicorn.Server(uvicorn.Config(create_app(generator), port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def chat(self, content: str, **fields: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 20, **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(10)
        self.generator.close()


@pytest.fixture
def retriever() -> Iterator[FakeRetriever]:
    fake = FakeRetriever()
    server = fake.start()
    fake.address = server.address
    yield fake
    fake.open.set()
    server.stop(0)


@pytest.fixture
def served(retriever: FakeRetriever) -> Iterator[Served]:
    served = Served(make_generator(retriever.address))
    yield served
    served.close()


def expected(prompt: str, count: int, snapshot: str | None) -> str:
    """The reference's text for a plain prompt."""
    tokenizer = byte_tokenizer()
    ids = reference(tiny_model(), tokenizer.encode(prompt).tolist(), count, snapshot)
    return tokenizer.decode(ids, skip_special=True)


def complete(served: Served, prompt: str, count: int = 30, **fields: object) -> dict:
    body = {"prompt": prompt, "max_tokens": count, "retrieval": {"k": 0}, **fields}
    reply = served.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("length", [3, 8, 9, 21, 40])
def test_served_tokens_equal_the_full_pass_with_neighbors(served: Served, length: int) -> None:
    prompt = ("the quick brown fox jumps over the lazy dog" * 2)[:length]
    reply = complete(served, prompt)
    assert reply["choices"][0]["text"] == expected(prompt, 30, "snapshot-a")
    assert reply["retrieval"]["cross_attention"] == "on"
    assert reply["choices"][0]["text"] != expected(prompt, 30, None), "neighbours must matter in this test"


def test_without_retrieval_tokens_equal_the_plain_full_pass(served: Served, retriever: FakeRetriever) -> None:
    reply = complete(served, "no books here", retrieval={"enabled": False})
    assert reply["choices"][0]["text"] == expected("no books here", 30, None)
    assert reply["retrieval"]["snapshot"] is None
    assert retriever.calls == []


def test_requests_in_flight_get_the_text_they_get_alone(served: Served) -> None:
    prompts = [f"prompt number {n} " + "x" * n for n in range(10)]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda prompt: complete(served, prompt)["choices"][0]["text"], prompts))
    assert together == [expected(prompt, 30, "snapshot-a") for prompt in prompts]


def test_queries_due_together_leave_as_one_search(served: Served, retriever: FakeRetriever) -> None:
    complete(served, "a" * 41, 1)
    sizes = [len(texts) for _, texts, tokens in retriever.calls if tokens]
    assert sizes == [6]


def test_a_request_keeps_its_snapshot_through_a_swap(served: Served, retriever: FakeRetriever) -> None:
    def swap() -> None:
        retriever.live, retriever.epoch = "snapshot-b", 2

    retriever.on_tokens = swap
    before = complete(served, "a question about a")
    assert before["retrieval"]["snapshot"] == "snapshot-a"
    assert {snapshot for snapshot, _, tokens in retriever.calls if tokens} == {"snapshot-a"}
    assert before["choices"][0]["text"] == expected("a question about a", 30, "snapshot-a")
    after = complete(served, "a question about a")
    assert (after["retrieval"]["snapshot"], after["retrieval"]["epoch"]) == ("snapshot-b", 2)
    assert after["choices"][0]["text"] == expected("a question about a", 30, "snapshot-b")


def test_a_named_snapshot_is_used(served: Served) -> None:
    reply = complete(served, "pinned", retrieval={"k": 0, "snapshot": "snapshot-b"})
    assert reply["choices"][0]["text"] == expected("pinned", 30, "snapshot-b")


def test_a_snapshot_that_is_not_loaded_is_refused(served: Served) -> None:
    reply = served.chat("hello", retrieval={"snapshot": "gone"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (409, "snapshot")


def test_a_sequence_at_a_border_waits_while_others_go_on(served: Served, retriever: FakeRetriever) -> None:
    retriever.open.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(complete, served, "this one waits")
        free = complete(served, "this one does not", retrieval={"enabled": False})
        assert free["choices"][0]["text"] == expected("this one does not", 30, None)
        assert not waiting.done()
        retriever.open.set()
        assert waiting.result(30)["choices"][0]["text"] == expected("this one waits", 30, "snapshot-a")


def test_the_reply_names_its_passages(served: Served) -> None:
    reply = served.chat("which letter?").json()
    passages = reply["retrieval"]["passages"]
    assert [passage["title"] for passage in passages] == ["Alpha", "Beta"]
    first = passages[0]
    assert (first["document_id"], first["uri"], first["licence"], first["chunk_id"]) == ("doc-0", "u0", "CC0", 100)
    (shown,) = reply["retrieval"]["shown"]
    start, end = first["span"]["tokens"]
    assert first["span"] == shown["span"]
    assert end - start == len(shown["text"]) == len("Alpha: alpha is the first letter")
    assert shown["text"] == "Alpha: alpha is the first letter"
    assert shown["chunk_ids"][0] == first["chunk_id"]
    positions = [each["positions"] for each in reply["retrieval"]["neighbors"]]
    prompt = reply["usage"]["prompt_tokens"]
    assert any(begin == prompt - 1 for begin, _ in positions), "the prompt's last token already uses retrieval"
    assert all(end - begin == M for begin, end in positions)
    assert max(len(each["chunk_ids"]) for each in reply["retrieval"]["neighbors"]) == 2
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


def test_a_stream_carries_the_same_text(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "stream it"}], "max_tokens": 20}
    whole = served.http.post("/v1/chat/completions", json=body).json()
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert events[0]["retrieval"] == {**whole["retrieval"], "neighbors": []}
    last = next(event for event in events if event["choices"] and event["choices"][0]["finish_reason"])
    assert last["retrieval"]["neighbors"] == whole["retrieval"]["neighbors"] != []
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[-1]["usage"] == whole["usage"]


def test_a_stop_string_ends_the_reply(served: Served) -> None:
    text = expected("a text to stop", 30, "snapshot-a")
    stop = text[4:6]
    reply = complete(served, "a text to stop", stop=[stop])
    assert reply["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "text": text[: text.find(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_a_seed_repeats_a_sampled_reply(served: Served) -> None:
    fields = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
    assert complete(served, "dice", **fields)["choices"] == complete(served, "dice", **fields)["choices"]


def test_a_client_that_leaves_frees_its_slot(served: Served, retriever: FakeRetriever) -> None:
    retriever.open.clear()
    with pytest.raises(httpx.ReadTimeout):
        served.http.post("/v1/completions", json={"prompt": "bye"}, timeout=0.3)
    deadline = time.monotonic() + 5
    while "openbook_generator_cancelled_total 1.0" not in served.http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_leaves_a_stream_frees_its_slot(served: Served) -> None:
    body = {"prompt": "bye", "max_tokens": 490, "stream": True, "retrieval": {"k": 0}}
    with served.http.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 5
    while "openbook_generator_cancelled_total 1.0" not in served.http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_full_queue_is_refused_with_a_time_to_come_back(retriever: FakeRetriever) -> None:
    served = Served(make_generator(retriever.address, slots=1, max_queue=1, retry_after_s=3))
    try:
        retriever.open.clear()
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(complete, served, "wait", 3) for _ in range(2)]
            deadline = time.monotonic() + 5
            while served.http.get("/metrics").text.count("openbook_generator_running 1.0") < 1:
                assert time.monotonic() < deadline
            time.sleep(0.3)
            refused = served.chat("one too many")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
            retriever.open.set()
            assert [len(reply.result(30)["choices"]) for reply in running] == [1, 1]
    finally:
        served.close()


def test_zero_gates_skip_the_neighbors(retriever: FakeRetriever) -> None:
    served = Served(make_generator(retriever.address, gate=0.0))
    try:
        reply = served.chat("hello").json()
        assert reply["retrieval"]["cross_attention"] == "off (gate 0)"
        assert len(reply["retrieval"]["passages"]) == 2
        assert [tokens for _, _, tokens in retriever.calls] == [False]
    finally:
        served.close()


def test_a_database_of_another_tokenizer_is_refused(served: Served, retriever: FakeRetriever) -> None:
    retriever.contract |= {"tokenizer": {**retriever.contract["tokenizer"], "vocab_size": 3}}
    reply = served.chat("hello")
    assert reply.status_code == 409
    assert "vocab_size" in reply.json()["error"]["message"]


def test_a_database_of_another_chunk_length_is_refused(served: Served, retriever: FakeRetriever) -> None:
    retriever.contract |= {"chunk_length": M + 1}
    reply = served.chat("hello")
    assert reply.status_code == 409
    assert f"chunk_length: the model has {M}" in reply.json()["error"]["message"]


def test_without_a_retriever_the_reason_is_told() -> None:
    served = Served(make_generator("127.0.0.1:9"))
    try:
        ready = served.http.get("/readyz")
        assert (ready.status_code, "127.0.0.1:9" in ready.json()["reason"]) == (503, True)
        reply = served.chat("hello")
        assert (reply.status_code, "127.0.0.1:9" in reply.json()["error"]["message"]) == (503, True)
        assert served.http.get("/healthz").status_code == 200
        # What is wrong with a request is said although nothing can be searched.
        for content, fields, named in [
            ("word " * 5000, {}, "messages"),
            ("hello", {"max_tokens": 5000}, "max_tokens"),
            ("hello", {"max_tokens": None, "max_completion_tokens": 5000}, "max_completion_tokens"),
        ]:
            refused = served.chat(content, **fields)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)
        refused = served.http.post("/v1/completions", json={"prompt": "word " * 5000})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    finally:
        served.close()


MISSING = [
    (PreconditionError("no live snapshot yet", reason=Reason.NOT_READY, field="database"), 409),
    (NotFoundError("unknown database", field="database"), 404),
]


@pytest.mark.parametrize(("refusal", "status"), MISSING)
def test_a_missing_book_is_the_services_failure_unless_the_client_named_it(
    served: Served, retriever: FakeRetriever, refusal: OpenbookError, status: int
) -> None:
    retriever.refusal = refusal
    unnamed = served.chat("hello")
    assert (unnamed.status_code, unnamed.json()["error"]["type"]) == (503, "server_error")
    assert refusal.message in unnamed.json()["error"]["message"]
    for retrieval in ({"database": "atlas"}, {"snapshot": "abc"}):
        named = served.chat("hello", retrieval=retrieval)
        assert (named.status_code, named.json()["error"]["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize(("retrieval", "status"), [({}, 503), ({"snapshot": "snapshot-a"}, 409)])
def test_a_snapshot_that_goes_under_a_request(
    served: Served, retriever: FakeRetriever, retrieval: dict[str, str], status: int
) -> None:
    retriever.open.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.chat, "hello", retrieval=retrieval)
        deadline = time.monotonic() + 10
        while not any(tokens for _, _, tokens in retriever.calls):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        retriever.loaded = {"snapshot-b"}
        retriever.open.set()
        reply = waiting.result(30)
    assert (reply.status_code, "snapshot-a" in reply.json()["error"]["message"]) == (status, True)


def test_a_query_that_is_refused_is_named_as_the_caller_named_it(served: Served, retriever: FakeRetriever) -> None:
    retriever.refusal = ArgumentError("texts[0]: is no text", field="texts[0]")
    for path, body, field in [
        ("chat/completions", {"messages": USER}, "messages"),
        ("completions", {"prompt": "hi"}, "prompt"),
    ]:
        error = served.http.post(f"/v1/{path}", json=body).json()["error"]
        assert (error["param"], error["type"]) == (field, "invalid_request_error")


def test_a_long_question_is_searched_for_by_its_beginning(served: Served, retriever: FakeRetriever) -> None:
    question = "  " + "0123456789" * 1500
    served.generator.retriever.passages("wiki", question, 2)
    ((_, (query,), _),) = retriever.calls
    assert question.strip().startswith(query)
    assert len(query) == 8192


def test_a_body_that_is_too_large(served: Served) -> None:
    body = json.dumps({"prompt": "x" * MAX_BODY_BYTES}).encode()
    for content in (body, iter([body[:1000], body[1000:]])):  # with its length declared, and in chunks
        reply = served.http.post("/v1/completions", content=content)
        assert (reply.status_code, reply.json()["error"]["type"]) == (413, "invalid_request_error")
    assert served.http.get("/healthz").status_code == 200


def test_unknown_paths_and_methods_are_errors_of_the_same_shape(served: Served) -> None:
    unknown = served.http.post("/v1/embeddings", json={})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert "/v1/embeddings" in unknown.json()["error"]["message"]
    wrong = served.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["type"]) == (
        405,
        "POST",
        "invalid_request_error",
    )


def test_small_endpoints(served: Served) -> None:
    assert served.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    first, second = (served.http.get("/v1/weights").json()["sha256"] for _ in range(2))
    assert first == second
    assert served.http.get("/readyz").json()["snapshot"] == "snapshot-a"
    page = served.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "v1/chat/completions" in page.text


USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("chat/completions", "{not json", None),
        ("chat/completions", "[1]", None),
        ("chat/completions", '{"messages": NaN}', None),
        ("completions", '{"prompt": "\\ud800"}', None),
        ("chat/completions", {}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ("chat/completions", {"messages": USER, "model": "gpt-9"}, "model"),
        ("chat/completions", {"messages": USER, "max_tokens": -1}, "max_tokens"),
        ("chat/completions", {"messages": USER, "max_tokens": 512}, "max_tokens"),
        ("chat/completions", {"messages": USER, "max_tokens": 10**30}, "max_tokens"),
        ("chat/completions", {"messages": USER, "max_tokens": "7"}, "max_tokens"),
        ("chat/completions", {"messages": USER, "temperature": -0.1}, "temperature"),
        ("chat/completions", {"messages": USER, "top_p": 0}, "top_p"),
        ("chat/completions", {"messages": USER, "seed": 1.5}, "seed"),
        ("chat/completions", {"messages": USER, "stop": ["a"] * 5}, "stop"),
        ("chat/completions", {"messages": USER, "stop": ""}, "stop"),
        ("chat/completions", {"messages": USER, "n": 2}, "n"),
        ("chat/completions", {"messages": USER, "presence_penalty": 1.0}, "presence_penalty"),
        ("chat/completions", {"messages": USER, "temprature": 1}, "temprature"),
        ("chat/completions", {"messages": USER, "retrieval": {"k": -1}}, "retrieval.k"),
        ("chat/completions", {"messages": USER, "retrieval": {"k": 10**6}}, "retrieval.k"),
        ("chat/completions", {"messages": [{"role": "user", "content": "y" * 600}]}, "messages"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": " \n "}, "prompt"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": "z" * 600}, "prompt"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of"),
    ],
)
def test_bad_input_names_the_field(served: Served, path: str, body: object, field: str | None) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    reply = served.http.post(f"/v1/{path}", content=content)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error"), error
    assert error["message"]
