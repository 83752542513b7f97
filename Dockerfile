# A CPU image by default:      docker build -t lfdm .
# One for NVIDIA's GPUs:       docker build -t lfdm:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSION=2.13.0
ARG EXTRAS=web,heif
ENV PYTHONUNBUFFERED=1

WORKDIR /opt/lfdm
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple "torch==${TORCH_VERSION}"
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 lfdm

USER 1000
WORKDIR /home/lfdm
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=4)"]
ENTRYPOINT ["lfdm"]
CMD ["serve", "--host", "0.0.0.0"]
