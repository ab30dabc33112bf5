# One image for the head, the workers and the service.
#
#   docker build -t codistill .                                        # CPU
#   docker build -t codistill:cuda \
#     --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .  # CUDA
#
#   head:     docker run … codistill ray start --head --block --num-cpus=0
#   worker:   docker run … codistill ray start --address=HEAD:6379 --block
#   service:  docker run … codistill bash -euc 'ray start --address=HEAD:6379 --num-cpus=0 &&
#                 exec codistill serve --on HEAD:6379 --host 0.0.0.0 --storage /storage'
#
# All three need the same /storage, --shm-size of at least the object store's size, and RAY_AUTH_MODE=token with the same
# RAY_AUTH_TOKEN. On Kubernetes: deploy/kuberay.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# A CUDA base brings no Python. procps is what Ray's own tools look for, wget what the probes of KubeRay call.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv procps wget \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 codistill \
 && mkdir -p /srv/codistill /storage \
 && chown codistill:codistill /srv/codistill /storage
USER codistill
WORKDIR /srv/codistill
# An environment of its own: the system's Python belongs to the distribution.
RUN if command -v /usr/local/bin/python3; then /usr/local/bin/python3 -m venv venv; else python3 -m venv venv; fi
ENV PATH=/srv/codistill/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    CODISTILL_HOME=/srv/codistill/state \
    CODISTILL_DATA=/storage/data \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=jobs.proxy.middlewares \
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1

# Dependencies first: they change less often than the code. All by their hashes but torch, whose build is one's own choice.
COPY --chown=codistill:codistill constraints.txt pyproject.toml README.md LICENSE ./
COPY --chown=codistill:codistill requirements requirements
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.lock \
 && pip install --no-cache-dir --index-url "${TORCH_INDEX}" -c constraints.txt torch
COPY --chown=codistill:codistill codistill codistill
COPY --chown=codistill:codistill cluster cluster
COPY --chown=codistill:codistill jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

VOLUME /storage
CMD ["codistill", "--help"]
