# Signet's build, in one file. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN      := $(CURDIR)/bin
FUZZTIME ?= 30s
IMAGE    ?= signet:dev
RACE     := -race
# Without debugging information test programs are linked in half the time.
GOTEST   := go test $(RACE) -ldflags=-w -timeout 30m

# The programs that tests start. They say so when one is missing.
export SIGNET_KUBE            := $(BIN)/kube
export SIGNET_PILOT_AGENT     := $(BIN)/pilot-agent
export SIGNET_PILOT_DISCOVERY := $(BIN)/pilot-discovery
export SIGNET_APPROVER_POLICY := $(BIN)/approver-policy

GOLANGCI_VERSION    := v2.15.0
GOVULNCHECK_VERSION := v1.8.0
GOLANGCI            := $(BIN)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
GOVULNCHECK         := $(BIN)/govulncheck-$(GOVULNCHECK_VERSION)/govulncheck
# Where vulnerabilities are looked up, such as -db=file:///srv/vulndb; Go's own database without it.
VULNDB ?=

# files are those of the tree that have one of some names; in a checkout that isn't clean, new ones too.
files = $$(git ls-files --cached --others --exclude-standard $(1) | while read -r file; do if [[ -e $$file ]]; then echo "$$file"; fi; done)

say = @printf '\n== %s (%s)\n' '$(1)' "$$(date +%H:%M:%S)"

.PHONY: help build bin kube pilot-agent pilot-discovery approver-policy race gcc openssl postgres chromium demo test unit controlplane e2e istio promtool prometheus lint shellcheck yamllint fuzz bench chart image release reproduce clean

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

approver-policy:
	$(call say,building approver-policy of cert-manager: minutes the first time)
	cd test/approver/policy && go build -trimpath -ldflags=-w -o $(BIN)/approver-policy .

# It is built without the ways in which Prometheus discovers what to scrape, as no test needs any.
promtool:
	$(call say,building promtool of Prometheus: minutes the first time)
	cd test/prometheus && go build -trimpath -tags remove_all_sd -ldflags=-w -o $(BIN)/promtool github.com/prometheus/prometheus/cmd/promtool

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

test: bin race unit prometheus controlplane istio ## run all tests, with the race detector
	$(call say,all tests passed)

unit: gcc
	$(call say,unit tests)
	$(GOTEST) ./...

# Four test binaries at a time, because some wait for clocks most of the time; trust, which takes longest, is among the first.
controlplane: bin approver-policy race openssl postgres chromium
	$(call say,tests on the control plane)
	cd test && SIGNET_BIN=$(BIN)/signet-race $(GOTEST) -count=1 -v -p 4 $$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | grep -v /bench | sort -r)

e2e: bin race ## only the tests that drive a running Signet
	$(call say,tests that drive a running Signet)
	cd test && SIGNET_BIN=$(BIN)/signet-race $(GOTEST) -count=1 -v ./e2e

istio: bin race pilot-discovery
	$(call say,tests with the clients of istio.io/istio in process and with istiod)
	cd test/istio && SIGNET_BIN=$(BIN)/signet-race $(GOTEST) -count=1 -v -p 3 $$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...)

prometheus: promtool ## test the alerts and the dashboard with Prometheus' own tool
	$(call say,tests of alerts and dashboard)
	cd test/prometheus && SIGNET_PROMTOOL=$(BIN)/promtool go test -count=1 -v ./...

lint: $(GOLANGCI) $(GOVULNCHECK) shellcheck yamllint ## check Go, shell and YAML, and ask for known vulnerabilities
	$(call say,shell and YAML)
	shellcheck $(call files,'*.sh') .ci/run
	yamllint --strict $(call files,'*.yaml' '*.yml')
	$(call say,known vulnerabilities)
	@if found=$$($(GOVULNCHECK) $(VULNDB) ./setting 2>&1) || [[ $$found != *'fetching vulnerabilities'* ]]; then \
		$(GOVULNCHECK) $(VULNDB) ./...; \
	else \
		echo "not looked for: the database can't be reached from here"; \
	fi
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	@wrong=0; for module in $(call files,'*go.mod'); do \
		printf '\n== Go in %s (%s)\n' "$$module" "$$(date +%H:%M:%S)"; \
		(cd "$$(dirname "$$module")" && $(GOLANGCI) run) || wrong=1; \
	done; exit $$wrong

# The linters are no dependencies of ours: each is built by itself, once for each version.
$(GOLANGCI):
	$(call say,building golangci-lint: minutes the first time)
	GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

$(GOVULNCHECK):
	$(call say,building govulncheck)
	GOBIN=$(@D) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)

shellcheck yamllint:
	@command -v $@ >/dev/null || { apt-get update && apt-get install -y --no-install-recommends $@; }

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

chart: ## lint the Helm chart, and pack it into bin
	$(call say,packing the chart)
	@mkdir -p $(BIN)
	cd test && go run ./chart/cmd/package --values chart/testdata/minimal.yaml --out $(BIN)

image: ## build the container image IMAGE (signet:dev), with Docker
	release/image.sh $(IMAGE)

release: ## build what a release consists of into dist: binaries, SBOMs, chart, checksums
	$(call say,building the release)
	release/build.sh dist

reproduce: ## build the released binaries twice, in two places, and compare them: minutes
	$(call say,building the released binaries twice)
	release/reproduce.sh

clean: ## remove what was built
	rm -rf $(BIN) dist
