# The device's image for x86-64; Dockerfile.arm64 differs from it in the next line alone.
ARG BASE=amd64/python:3.13.9-slim-trixie

FROM ${BASE} AS build
WORKDIR /opt/lineside
COPY requirements.txt requirements.lock ./
COPY scripts/runtime scripts/slim.py scripts/
COPY scripts/supply/hashed.py scripts/supply/
RUN ["scripts/runtime", "/opt/lineside/site"]
COPY server server
RUN ["python", "-m", "compileall", "-q", "server"]

FROM ${BASE}
LABEL org.opencontainers.image.title="Lineside" \
      org.opencontainers.image.description="Recognition server for the production line" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONPATH=/opt/lineside/site \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LINESIDE_HOST=0.0.0.0 \
    LINESIDE_MODELS=/var/lib/lineside/models \
    LINESIDE_DATA=/var/lib/lineside/data \
    LINESIDE_KEYS_FILE=/var/lib/lineside/keys/keys.jsonl
# A new volume takes what lies here and whose it is: the shipped bundles, and room for data and keys.
RUN groupadd --gid 10001 lineside \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/lineside \
      --shell /usr/sbin/nologin lineside \
    && install -d -o 10001 -g 10001 -m 750 /var/lib/lineside /var/lib/lineside/data \
      /var/lib/lineside/keys
WORKDIR /opt/lineside
COPY --from=build /opt/lineside/site site
COPY --from=build /opt/lineside/server server
COPY LICENSE README.md ./
COPY --chown=10001:10001 models /var/lib/lineside/models
USER 10001:10001
VOLUME ["/var/lib/lineside"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# The server refuses to start on an address that others reach until there is a key:
# docker run --rm -v lineside:/var/lib/lineside IMAGE key add line --rights recognize
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
  CMD ["python", "-m", "server", "health"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["serve"]
