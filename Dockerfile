# opportune: one process, no root, kernels compiled while the image is built.
FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/opportune && /opt/opportune/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
RUN /opt/opportune/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim
# The machine that builds is not the one that runs: compile for any x86-64 or ARM, and never at run time.
ENV NUMBA_CPU_NAME=generic OPPORTUNE_CACHE_DIR=/opt/kernels PATH=/opt/opportune/bin:$PATH
COPY --from=build /opt/opportune /opt/opportune
RUN useradd --system --uid 10001 --create-home opportune \
    && mkdir -p /opt/kernels /var/lib/opportune /etc/opportune \
    && opportune warm \
    && chown -R opportune /var/lib/opportune
WORKDIR /etc/opportune
COPY geofences geofences
COPY scenarios scenarios
USER opportune
ENV OPPORTUNE_NO_COMPILE=1 OPPORTUNE_STATE=/var/lib/opportune OPPORTUNE_HOST=0.0.0.0
VOLUME /var/lib/opportune
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# Beyond loopback the service asks for a key: docker run -e OPPORTUNE_API_KEY=... -p 8080:8080 opportune
CMD ["opportune", "serve"]
