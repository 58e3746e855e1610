# One image for all three components; the chart says which command a container runs.
#
#   docker build -t migcompat:0.1.0 .
#
# BASE: any image with Python 3.11 or newer and its venv module. Both stages use it, because a virtual environment
# belongs to the Python it was made with.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
# Tools of the build stay in an environment of their own; what is installed is pinned by hash in both.
COPY requirements.lock requirements-dev.lock ./
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements-dev.lock \
 && python3 -m venv --without-pip /opt/migcompat \
 && /opt/build/bin/pip --python /opt/migcompat/bin/python install \
      --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY deviceplugin deviceplugin
COPY extender extender
COPY operator operator
RUN /opt/build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -w /tmp/wheel . \
 && /opt/build/bin/pip --python /opt/migcompat/bin/python install \
      --no-cache-dir --disable-pip-version-check --no-deps /tmp/wheel/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="migcompat" \
      org.opencontainers.image.description="Live migration of KubeVirt VMs with VFIO devices, made schedulable" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/migcompat /opt/migcompat
COPY LICENSE /usr/share/doc/migcompat/LICENSE
ENV PATH=/opt/migcompat/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Nobody. The chart makes root of the device plugin alone, and says why there.
USER 65532:65532
CMD ["migcompat", "--help"]
