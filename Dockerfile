# One image for all three components; the chart says which command a container runs.
#
#   docker build -t migcompat:0.1.0 .
#
# BASE: an image with Python 3.11 or newer and its venv module. Only the build runs in it: what the image needs is
# taken out of it (deploy/image/assemble.py), and nothing else.
ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
WORKDIR /build
COPY requirements.lock requirements-build.lock deploy/image/assemble.py ./
# Tools of the build stay in an environment of their own; what is installed is pinned by hash in both.
RUN python3 -m venv tools \
 && tools/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements-build.lock \
 && python3 -m venv --without-pip /opt/migcompat \
 && tools/bin/pip --python /opt/migcompat/bin/python install \
      --no-cache-dir --disable-pip-version-check --no-compile --require-hashes -r requirements.lock \
 && python3 assemble.py /opt/migcompat /image

FROM dependencies AS product
COPY . .
RUN tools/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -w wheels . \
 && tools/bin/pip --python /opt/migcompat/bin/python install \
      --no-cache-dir --disable-pip-version-check --no-compile --no-deps --no-index --find-links wheels --root /product migcompat \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /product -p / /product \
 && install -D -m 644 LICENSE /product/usr/share/doc/migcompat/LICENSE

FROM scratch
LABEL org.opencontainers.image.title="migcompat" \
      org.opencontainers.image.description="Live migration of KubeVirt VMs with VFIO devices, made schedulable" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/migcompat/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Nobody. The chart makes root of the device plugin alone, and says why there.
USER 65532:65532
CMD ["migcompat", "--help"]
COPY --from=dependencies /image /
COPY --from=product /product /
