# Two images from one file: `server` (coordinators, share holders) and `device` (simulated devices).
# Both hold every package of the project and what they import, compiled to bytecode by pip.
FROM python:3.11-slim AS build
ENV PATH=/opt/fedagg/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CACHE_DIR=/var/cache/pip
RUN python -m venv /opt/fedagg
WORKDIR /src
# The project's metadata alone: dependencies are installed again only when the pins change.
COPY pyproject.toml requirements.lock LICENSE ./
RUN touch README.md
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --quiet --constraint requirements.lock setuptools && \
    pip install --quiet --constraint requirements.lock --no-build-isolation '.[server]'
COPY . .
RUN pip install --quiet --no-deps --no-build-isolation --force-reinstall .
# The first model of the sample task in docs/samples/compose.toml.
RUN fedagg models init digits --output /models/digits.safetensors

FROM python:3.11-slim AS runtime
RUN groupadd --gid 10001 fedagg && \
    useradd --uid 10001 --gid fedagg --home-dir /var/lib/fedagg --no-create-home fedagg && \
    install --directory --owner fedagg --group fedagg --mode 0750 /var/lib/fedagg \
        /var/lib/share-holder /var/lib/share-holder/identities \
        /var/lib/share-holder/holder-1 /var/lib/share-holder/holder-2 \
        /var/lib/share-holder/holder-3 /var/lib/share-holder/holder-4 \
        /var/lib/share-holder/holder-5
ENV PATH=/opt/fedagg/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/fedagg
USER 10001:10001
ENTRYPOINT ["fedagg"]

FROM runtime AS device
COPY --from=build /opt/fedagg /opt/fedagg
CMD ["device", "--help"]

FROM runtime AS server
COPY --from=build /opt/fedagg /opt/fedagg
COPY --from=build /models /usr/share/fedagg/models
# Compiles the kernels into the home folder, from where a new volume gets them. On another processor
# a coordinator or share holder compiles them again when it starts, once.
RUN python -m aggregators.warm_up && python -m security.secret_sharing.warm_up
EXPOSE 50051 8080 9090
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=3)"]
CMD ["serve", "--config", "/etc/fedagg/server.toml"]
