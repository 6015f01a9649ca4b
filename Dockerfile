# The environment of every node of a cluster, with this repository installed in it: training, evaluation, and
# negatives with vLLM. Needs no GPU to build; about 10 GB of packages.
#
#   docker build --tag IMAGE . && docker push IMAGE
FROM python:3.11-slim-bookworm

# rsync and ssh: Ray's autoscaler starts workers from inside the head's container. gcc: Triton compiles kernels.
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev openssh-client procps rsync sudo \
    && rm -rf /var/lib/apt/lists/*

# The user id of the first user of a machine, so that mounted files are readable in the container.
RUN useradd --create-home --uid 1000 ray && install --directory --owner=ray /home/ray/.ray \
    && echo "ray ALL=(ALL) NOPASSWD: ALL" > /etc/sudoers.d/ray

# The lock is complete: pip resolves nothing, and an image built next year has the same packages.
COPY constraints-gpu.txt /tmp/
RUN pip install --no-cache-dir --no-deps --requirement /tmp/constraints-gpu.txt

COPY pyproject.toml README.md LICENSE /home/ray/degla-ray/
COPY degla_ray /home/ray/degla-ray/degla_ray
COPY jobs /home/ray/degla-ray/jobs
COPY tune_spaces /home/ray/degla-ray/tune_spaces
RUN pip install --no-cache-dir --no-deps /home/ray/degla-ray && chown -R ray: /home/ray/degla-ray

ENV HOME=/home/ray NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ray
WORKDIR /home/ray/degla-ray
