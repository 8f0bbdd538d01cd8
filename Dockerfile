# docker build -t bids_fbn .                                                            PyTorch for GPUs and CPUs
# docker build -t bids_fbn --build-arg TORCH=cpu --build-arg TORCH_INDEX=ADDRESS .      for CPUs alone, 1.8 GB
# ADDRESS is where pytorch.org ("Get started") says that its packages for CPUs are.

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
COPY containers/install /src/containers/install
RUN /src/containers/install system ca-certificates python3 python3-venv
ARG TORCH=cuda
ARG TORCH_INDEX=
COPY constraints.txt pyproject.toml /src/
RUN /src/containers/install packages
COPY LICENSE README.md run.py version /src/
COPY bids_fbn /src/bids_fbn
RUN /src/containers/install app
ENV NILEARN_DATA=/app/nilearn_data TEMPLATEFLOW_HOME=/app/templateflow
COPY containers /src/containers
RUN /src/containers/install templates

FROM ${BASE}
COPY containers/install /src/containers/install
RUN /src/containers/install system python3 && rm -r /src
COPY --from=build /app /app
ENV PATH=/app/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LC_ALL=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NILEARN_DATA=/app/nilearn_data \
    TEMPLATEFLOW_HOME=/app/templateflow \
    TEMPLATEFLOW_AUTOUPDATE=false \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG TORCH=cuda
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="bids_fbn" \
      org.opencontainers.image.description="Functional brain networks in fMRI and how they come and go: a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/bids-fbn/bids_fbn" \
      org.bids_fbn.torch="${TORCH}"
# A label that lies, or a module that a user would be the first to import, fails here.
RUN export HOME=/tmp/home && mkdir $HOME && test "$(/app/run.py --version)" = "bids_fbn ${VERSION}" && \
    python -c "import importlib, pkgutil, bids_fbn; \
[importlib.import_module(found.name) for found in pkgutil.walk_packages(bids_fbn.__path__, 'bids_fbn.')]" && \
    rm -r $HOME
WORKDIR /tmp
ENTRYPOINT ["/app/run.py"]
