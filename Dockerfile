# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags='-s -w' -o /signet ./cmd/signet

FROM gcr.io/distroless/static:nonroot
COPY --from=build /signet /signet
USER 65532:65532
EXPOSE 6443 8443 9402 6060
ENTRYPOINT ["/signet"]
