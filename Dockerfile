# The sample application's worker and Flower; docker-compose.yml says which.
FROM python:3.13-slim

WORKDIR /app
COPY . .
RUN pip install --no-cache-dir ".[sample]" \
    && useradd --create-home shop \
    && mkdir /data \
    && chown shop /data

USER shop
VOLUME /data
