# One image for GPUs and for CPUs: make, train and evaluate with mounted data, runs and weights.
#   docker build -t plumage .                       PyTorch's wheel brings CUDA 13.0; the machine brings the driver,
#                                                   580 or newer (NVIDIA, "CUDA Compatibility"), and a GPU of compute
#                                                   capability 7.5 or more: T4, A10, A100, H100, ...
#   docker build -t plumage:cpu --build-arg TORCH_INDEX=URL .     URL: PyTorch's own index of CPU wheels
#   docker build --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 .     where NVIDIA's base is asked for
#   docker run --rm plumage make smoke              data, train and eval on a few drawn birds
#   docker run --rm --gpus all plumage make gpu-check    what only a GPU shows: speeds, waits, memory, exactness
#   docker build -t plumage:serve --target serve .  the server of an exported model, without PyTorch
# BASE needs apt and Python 3.11 or newer: the pinned versions ask for it.
ARG BASE=debian:bookworm-slim

# The packages, without the code: these layers are made anew only when constraints.txt changes.
FROM ${BASE} AS packages
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/plumage
COPY constraints.txt /tmp/
ARG TORCH_INDEX=""
RUN ${TORCH_INDEX:+env PIP_INDEX_URL="${TORCH_INDEX}"} \
    /opt/plumage/bin/pip install --constraint /tmp/constraints.txt torch torchvision
RUN /opt/plumage/bin/pip install --requirement /tmp/constraints.txt \
 && /opt/plumage/bin/pip check

# A server of one exported model: docker run -p 8000:8000 -v FOLDER/export:/export:ro plumage:serve
FROM ${BASE} AS serve
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group plumage
ENV PATH=/opt/plumage/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY constraints-serve.txt /tmp/
RUN python3 -m venv /opt/plumage \
 && /opt/plumage/bin/pip install --requirement /tmp/constraints-serve.txt \
 && /opt/plumage/bin/pip check
WORKDIR /plumage
COPY . .
RUN chmod --recursive a+rX .
USER 10001
STOPSIGNAL SIGTERM
# With the arguments of CMD replaced, name the export first.
ENTRYPOINT ["tini", "--", "python", "-m", "pipeline", "serve"]
CMD ["/export", "--host", "0.0.0.0", "--drain-seconds", "5"]

FROM ${BASE} AS plumage
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# For train.compile: --build-arg PACKAGES="gcc g++ python3-dev"
ARG PACKAGES=""
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates make python3 tini ${PACKAGES} \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --create-home plumage \
 && chmod 1777 /home/plumage
COPY --from=packages /opt/plumage /opt/plumage

# A user id that has no name (docker run --user) finds a home it may write to, for what libraries cache.
ENV HOME=/home/plumage USER=plumage \
    PATH=/opt/plumage/bin:${PATH} \
    MAKEFLAGS="BIN=/opt/plumage/bin READY=" \
    HF_HOME=/plumage/weights/huggingface MPLBACKEND=Agg \
    NO_ALBUMENTATIONS_UPDATE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /plumage
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
 && chmod --recursive a+rX . \
 && mkdir --mode=1777 data runs weights

ARG REVISION=unknown
LABEL org.opencontainers.image.title="Plumage" \
      org.opencontainers.image.description="Fine-grained image classification: data, train, eval" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001
# tini passes a signal on to make or Python, which saves the run and ends: give it time (docker stop --time 120).
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["make", "help"]
