# The sample application's worker and Flower; docker-compose.yml says which. What is installed is
# in requirements-image.lock, with its hashes.
FROM python:3.13.16-slim-trixie@sha256:70729b46c69b4f1e97c4822c1af3df53a1476cf5ddc6c087c0c10bc3a5678c2f AS base

FROM base AS build
RUN python -m venv /venv
COPY requirements-image.lock .
RUN /venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-image.lock
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY cqrs_celery cqrs_celery
# What builds the package stays in this stage.
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /venv/bin/pip uninstall --yes editables hatchling pathspec pluggy tomlkit trove-classifiers pip

FROM base
RUN useradd --create-home shop && install --directory --owner shop /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
COPY celeryconfig.py ./
COPY sample_app sample_app

USER shop
VOLUME /data
