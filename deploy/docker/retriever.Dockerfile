# A shard or a router. No torch, no weights.
# docker build -f deploy/docker/retriever.Dockerfile -t openbook/retriever .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH
COPY constraints.txt requirements-weights.txt ./
COPY proto ./proto
COPY libs/core ./libs/core
COPY libs/database ./libs/database
COPY services/retriever ./services/retriever
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ./proto './libs/core[traces]' './libs/database[redis]' ./services/retriever

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/openbook /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH HOME=/tmp USER=openbook PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /tmp
USER 10001:10001
EXPOSE 7000 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "openbook_core.health", "grpc://127.0.0.1:7000/openbook_proto.v1.Retriever"]
ENTRYPOINT ["python", "-m", "openbook_retriever"]
CMD ["--role", "router", "--registry", "redis://redis:6379", "--host", "0.0.0.0", "--port", "7000", "--metrics-port", "9100"]
