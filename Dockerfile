# kevip as an image: configured by environment variables or arguments, run with the host's network.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9
WORKDIR /src
ENV UV_PROJECT_ENVIRONMENT=/opt/kevip UV_LINK_MODE=copy UV_PYTHON=/usr/bin/python3
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY kevip kevip
RUN /opt/uv/bin/uv sync --locked --no-dev --no-editable --no-cache

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="kevip" \
      org.opencontainers.image.description="One virtual IP in front of many machines: CARP and an iptables proxy" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 ucarp iptables iproute2 conntrack tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/kevip /opt/kevip
COPY --chmod=755 entrypoint.sh /usr/local/bin/kevip-entrypoint
ENV PATH=/opt/kevip/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["/usr/bin/tini", "--", "kevip-entrypoint"]
