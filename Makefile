# Signet's build, in one file. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN      := $(CURDIR)/bin
FUZZTIME ?= 30s
IMAGE    ?= signet:dev
RACE     := -race
GOTEST   := go test $(RACE) -timeout 30m

# The programs that tests start. They say so when one is missing.
export SIGNET_KUBE            := $(BIN)/kube
export SIGNET_PILOT_AGENT     := $(BIN)/pilot-agent
export SIGNET_PILOT_DISCOVERY := $(BIN)/pilot-discovery

say = @printf '\n== %s (%s)\n' '$(1)' "$$(date +%H:%M:%S)"

.PHONY: help build bin kube pilot-agent pilot-discovery race gcc openssl postgres chromium demo test unit controlplane e2e istio lint fuzz bench image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/signet and bin/signetctl
	$(call say,building signet and signetctl)
	go build -trimpath -o $(BIN)/ ./cmd/signet ./cmd/signetctl

bin: build kube pilot-agent ## build everything that the demo runs: signet, the control plane, Istio's agent

kube:
	$(call say,building etcd + kube-apiserver + cert-manager: minutes the first time)
	test/kube/build.sh $(BIN)/kube

pilot-agent:
	$(call say,building pilot-agent of istio.io/istio)
	cd test/istio && go build -trimpath -o $(BIN)/pilot-agent ./cmd/pilot-agent

pilot-discovery:
	$(call say,building pilot-discovery of istio.io/istio: minutes the first time)
	cd test/istio && go build -trimpath -o $(BIN)/pilot-discovery ./cmd/pilot-discovery

race: gcc
	$(call say,building signet with the race detector)
	go build $(RACE) -o $(BIN)/signet-race ./cmd/signet

# The race detector links with a C compiler; nothing else of the project needs one.
gcc:
	@command -v gcc >/dev/null || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }

# Some tests have OpenSSL judge certificates.
openssl:
	@command -v openssl >/dev/null || { apt-get update && apt-get install -y --no-install-recommends openssl; }

# The ledger's tests run a real PostgreSQL.
postgres:
	@test/ledger/postgres/install.sh

# The page's tests drive a real browser.
chromium:
	@test/web/install.sh

demo: bin ## a real mesh in miniature, live; ONCE=1 ends after every workload has renewed once
	$(call say,starting the demo)
	cd test && go build -o $(BIN)/demo ./demo
	exec $(BIN)/demo $(if $(filter-out 0,$(ONCE)),--once) $(if $(DEMO_DIR),--dir '$(DEMO_DIR)')

test: bin race unit controlplane istio ## run all tests, with the race detector
	$(call say,all tests passed)

unit: gcc
	$(call say,unit tests)
	$(GOTEST) ./...

# Three test binaries at a time, because some wait for clocks most of the time; trust, which takes longest, is among the first.
controlplane: bin race openssl postgres chromium
	$(call say,tests on the control plane)
	cd test && SIGNET_BIN=$(BIN)/signet-race $(GOTEST) -v -p 3 $$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | grep -v /bench | sort -r)

e2e: bin race ## only the tests that drive a running Signet
	$(call say,tests that drive a running Signet)
	cd test && SIGNET_BIN=$(BIN)/signet-race $(GOTEST) -v ./e2e

istio: bin race pilot-discovery
	$(call say,tests with the clients of istio.io/istio in process and with istiod)
	cd test/istio && SIGNET_BIN=$(BIN)/signet-race $(GOTEST) -v -p 1 $$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...)

lint: ## gofmt and go vet, in all modules
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	@for module in . test test/kube test/istio; do echo "go vet in $$module"; (cd $$module && go vet ./...); done

fuzz: ## run each fuzz target for FUZZTIME (30s)
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			printf '\n== %s %s\n' $$package $$target; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$package; \
		done; \
	done

bench: bin postgres ## measure Signet against bare CertificateRequests, in one run
	$(call say,benchmarks)
	cd test && go run ./bench

image: ## build the container image IMAGE (signet:dev)
	docker build -t $(IMAGE) .

clean: ## remove what was built
	rm -rf $(BIN)
