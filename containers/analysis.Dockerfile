# The analysis: workflow, fits, report and simulation, with the packages that envs/requirements.txt locks. No engine.
#   docker build -f containers/analysis.Dockerfile -t sweetspot-llm:0.1.0 .
FROM python:3.12.11-slim-bookworm
WORKDIR /opt/sweetspot
COPY envs/requirements.txt envs/
RUN pip install --no-cache-dir --require-hashes -r envs/requirements.txt
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff Snakefile ./
COPY workflow workflow
COPY config config
COPY profiles profiles
COPY resources resources
COPY envs envs
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
# Any user may run it: `docker run --user "$(id -u):$(id -g)"` has no home of its own.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /study
CMD ["sweetspot", "--help"]
