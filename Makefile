# Pollux. `make help` lists the targets; `make compare` and `make test` are the
# two to know. Whatever is missing on a Debian 12 is installed when it is needed.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Where Go's own installer and Debian put things that a plain PATH may lack.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export CGO_ENABLED := 1

# The commit goes into the binary where there is a repository to ask.
VCS         := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCH       ?= .
BENCHTIME   ?= 1s
BENCHED     ?= ./driver/... ./stack ./apps/memcached/...
FUZZTIME    ?= 5m
RUN         ?= run
COMPARE     ?= --quick
PROFILE     := apps/pollux/default.pgo

.PHONY: help deps ready build compare run test fuzz bench bench-packet pgo lint generate clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

deps: ## install what is missing (Debian packages, as root), and say what
	@.ci/deps install

# Every target below needs this; it costs some milliseconds when all is there.
ready:
	@.ci/deps check || .ci/deps install

build: ready ## build bin/pollux (with apps/pollux/default.pgo, if there is one)
	go build -buildvcs=$(VCS) -trimpath -o bin/pollux ./apps/pollux

compare: build ## the main job: measure both paths in a test network, say which to use (as root); COMPARE=--full
	bin/pollux compare $(COMPARE)

run: build ## serve memcached in a test network, drive it, print figures (as root)
	bin/pollux $(RUN)

test: ready ## all tests, with the race detector; root, or what needs it is skipped
	@go test -json -race -timeout 15m ./... ./.ci/summary | go run ./.ci/summary

# One fuzzer at a time: go test takes no more. A finding is written to testdata.
fuzz: ready ## fuzz every parser of input from the wire or from files; FUZZTIME=5m for each
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' "$$dir"/*_test.go); do \
			echo "$$dir $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "$$dir" || exit 1; \
		done; \
	done

bench: ready ## benchmarks; BENCH=regexp BENCHTIME=2s BENCHED=./stack to choose
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem $(BENCHED)
	@echo; echo "What the profile that the binary is built with gains: the same benchmark without, then with it."
	go test -run '^$$' -bench 'Get/inline' -benchtime $(BENCHTIME) -count 3 -pgo off ./stack
	go test -run '^$$' -bench 'Get/inline' -benchtime $(BENCHTIME) -count 3 -pgo $(CURDIR)/$(PROFILE) ./stack

bench-packet: build ## the packet service against testpmd, the kernel and its XDP twin (as root; 3 minutes)
	go test -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 15m -pgo $(CURDIR)/$(PROFILE) ./apps/pollux/internal/forwarder/bench
	bin/pollux compare packet

# The profile is that of the hot paths alone (the benchmarks of TCP and of the
# forwarder) and of a server under load in the lab, for what surrounds them.
pgo: build ## profile the hot path anew, for the compiler
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	go test -run '^$$' -bench 'Get/inline' -benchtime 10s -pgo off -cpuprofile "$$dir/bench.prof" -o "$$dir/stack.test" ./stack; \
	go test -run '^$$' -bench 'Forward/loop' -benchtime 1s -pgo off -cpuprofile "$$dir/forward.prof" -o "$$dir/forward.test" ./apps/packet/forward; \
	bin/pollux run --mode poll --duration 20s --profile "$$dir/server.prof"; \
	go tool pprof -proto "$$dir/bench.prof" "$$dir/forward.prof" "$$dir/server.prof" > $(PROFILE)

lint: ready ## gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt-ed: run gofmt -w on"; echo "$$unformatted"; exit 1; fi
	go vet ./... ./.ci/summary
	go run $(STATICCHECK) ./... ./.ci/summary

generate: ready ## run the code generators
	go generate ./...

clean: ## remove what was built
	rm -rf bin
