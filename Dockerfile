# The image holds the locked runtime and the wheel; nothing in it is written to but the volume and /tmp.
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements requirements
RUN python -m venv /opt/midwatch \
    && /opt/midwatch/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY models models
COPY connectors connectors
COPY jobs jobs
RUN /opt/build/bin/python -m hatchling build -t wheel -d dist \
    && /opt/midwatch/bin/pip install --no-cache-dir --no-deps --no-index dist/*.whl

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/midwatch --shell /usr/sbin/nologin midwatch \
    && install --directory --owner midwatch --group midwatch /var/lib/midwatch
COPY --from=build /opt/midwatch /opt/midwatch
# numba keeps its compiled kernels beside the sources, which are read-only here.
ENV PATH=/opt/midwatch/bin:$PATH \
    NUMBA_CACHE_DIR=/var/lib/midwatch/numba \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER midwatch
WORKDIR /var/lib/midwatch
VOLUME /var/lib/midwatch
ENTRYPOINT ["midwatch"]
CMD ["--help"]
