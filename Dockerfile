# kevip as an image: configured by environment variables or arguments, run with the host's network. docs/image.md has the
# sizes, and the reasons.

# A release is built on the digest of that day, --build-arg BASE=debian:bookworm-slim@sha256:..., and says so in its labels, which
# script/labels prints. No digest stands here: it would keep this base's security fixes out until somebody changes it.
ARG BASE=debian:bookworm-slim

# What pip downloads is what uv.lock says, with its hashes. Behind a proxy that ends TLS: --secret id=ca,src=ITS_CA.crt
FROM $BASE AS build
RUN --mount=type=secret,id=ca,target=/usr/local/share/ca-certificates/build.crt \
    apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN python3 -m venv /opt/build \
    && python3 -m venv --without-pip /opt/kevip \
    && uv=$(sed -n '/^name = "uv"$/{n;s/version = "\(.*\)"/\1/p}' uv.lock) \
    && /opt/build/bin/pip install --no-cache-dir "uv==$uv" \
    && /opt/build/bin/uv export --quiet --frozen --only-group build --output-file /opt/build/tools.txt \
    && /opt/build/bin/uv export --quiet --frozen --no-dev --extra metrics --no-emit-project --output-file /opt/build/run.txt \
    && /opt/build/bin/pip install --no-cache-dir --requirement /opt/build/tools.txt \
    && /opt/build/bin/pip --python /opt/kevip/bin/python install --no-cache-dir --requirement /opt/build/run.txt
COPY README.md LICENSE ./
COPY kevip kevip
COPY deploy/share deploy/share
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /opt/build . \
    && /opt/build/bin/pip --python /opt/kevip/bin/python install --no-cache-dir --no-deps /opt/build/kevip-*.whl

# Debian without what installs and administers Debian: nobody does that in a container, and it is a third of the size.
FROM $BASE AS system
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 ucarp keepalived iptables nftables iproute2 conntrack tini \
        ca-certificates conntrackd \
    && dpkg --purge --force-depends --force-remove-essential --force-remove-protected \
        adduser apt debian-archive-keyring e2fsprogs gpgv hostname init-system-helpers \
        libapt-pkg6.0 libext2fs2 libgnutls30 libhogweed6 libidn2-0 libnettle8 libp11-kit0 libseccomp2 libss2 libstdc++6 \
        libtasn1-6 libunistring2 login logsave mount net-tools passwd sysvinit-utils tzdata \
        libdb5.3 libpam-modules libpam-modules-bin libpam-runtime libpam0g libsemanage-common libsemanage2 \
        libsepol2 libsqlite3-0 pci.ids util-linux-extra \
    && dpkg --purge --force-depends --force-remove-essential debconf diffutils tar perl-base dpkg \
    && rm -rf /usr/lib/*/gconv /var/cache/* /var/lib/apt /var/lib/dpkg/info /var/log/* \
        /usr/lib/*/perl /usr/share/perl /usr/share/mibs /usr/share/snmp \
    && find / -xdev -type f -perm /6000 -delete
# What needed them, what nothing here uses or is there twice, and of Python what its developers and learners use.
RUN rm -rf /usr/lib/python3.*/dbm /usr/lib/python3.*/sqlite3 /usr/lib/python3.*/lib-dynload/_dbm.* \
        /usr/lib/python3.*/lib-dynload/_sqlite3.* /usr/bin/perl5* /usr/sbin/arpd /usr/sbin/runuser \
        /usr/bin/tini-static /usr/bin/openssl /usr/lib/*/libmvec.so.1 /usr/lib/*/libsnmp.so.40* \
        /usr/lib/python3.*/pydoc_data /usr/lib/python3.*/test /usr/lib/python3.*/lib-dynload/_test* \
        /usr/lib/python3.*/lib-dynload/_xxtest* /usr/lib/python3.*/turtle.py /usr/lib/python3.*/__pycache__/turtle.* \
        /usr/lib/python3.*/unittest /usr/share/bash-completion /usr/bin/localedef

# One layer: what was removed takes no place.
FROM scratch
LABEL org.opencontainers.image.title="kevip" \
      org.opencontainers.image.description="One virtual IP in front of many machines: CARP and an iptables proxy" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=system / /
COPY --from=build /opt/kevip /opt/kevip
COPY --chmod=755 entrypoint.sh /usr/local/bin/kevip-entrypoint
ENV PATH=/opt/kevip/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["kevip-probe", "live"]
ENTRYPOINT ["tini", "--", "kevip-entrypoint"]
