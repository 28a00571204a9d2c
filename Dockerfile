# syntax=docker/dockerfile:1
# The image of Signet: one static binary, for the platforms that Go cross-compiles it to (linux/amd64, linux/arm64).
# release/image.sh builds it; VERSION, COMMIT and DATE are what `signet --version` tells. signetctl isn't in it: it runs on
# the machines of those who ask, and is released as a binary.
ARG GO_VERSION=1.26.8
ARG BASE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
ARG COMMIT
ARG DATE
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH release/compile.sh ./cmd/signet /out/signet && \
    go run ./release/licenses /out/signet >/out/LICENSES && \
    mkdir /out/state

FROM ${BASE}
ARG VERSION=devel
ARG COMMIT
ARG DATE
LABEL org.opencontainers.image.title="signet" \
      org.opencontainers.image.description="The certificate authority between cert-manager and an Istio mesh" \
      org.opencontainers.image.source="https://github.com/signet-ca/signet" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${DATE}"
COPY --from=build /out/signet /out/LICENSES /
# The default of ledger.dir, writable without a volume too.
COPY --from=build --chown=65532:65532 /out/state /var/lib/signet
USER 65532:65532
EXPOSE 6443 8443 9402 6060
ENTRYPOINT ["/signet"]
