# vLLM's own release with what measures: it needs the standard library and nvidia-ml-py.
#   docker build -f containers/vllm.Dockerfile -t sweetspot-vllm:0.26.0 .
FROM vllm/vllm-openai:v0.26.0
WORKDIR /opt/sweetspot
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY workflow workflow
RUN uv pip install --system --no-deps . nvidia-ml-py==13.615.71
WORKDIR /study
ENTRYPOINT ["python3"]
