# NVIDIA's release of TensorRT-LLM with what measures: it needs the standard library and nvidia-ml-py.
#   docker build -f containers/tensorrt-llm.Dockerfile -t sweetspot-tensorrt-llm:1.2.1 .
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1
WORKDIR /opt/sweetspot
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY workflow workflow
RUN python3 -m pip install --no-cache-dir --no-deps . nvidia-ml-py==13.615.71
WORKDIR /study
ENTRYPOINT ["python3"]
