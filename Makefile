# `make help` lists what there is. CI runs `make lint` and `make test` and nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help
DIR ?= ./swarm

.PHONY: help setup setup-test setup-soak setup-bench build release up lint fmt test soak bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and mounting need (Debian packages; asks for root only if one is missing)
	@deploy/install-packages.sh cc:gcc make:make fusermount3:fuse3

setup-test: setup ## Install what the tests need besides
	@deploy/install-packages.sh getfattr:attr git:git ip:iproute2 rsync:rsync sqlite3:sqlite3 tar:tar

setup-soak: setup-test ## Install what the full rounds need besides
	@deploy/install-packages.sh fio:fio stress-ng:stress-ng

setup-bench: setup-test ## Install what the benchmarks compare with
	@deploy/install-packages.sh sshfs:sshfs sshd:openssh-server fio:fio

build: setup ## Build all programs, unoptimised
	cargo build --locked --workspace --bins

release: setup ## Build all programs for use
	cargo build --locked --release --workspace --bins

up: release ## Run a swarm on this machine, mounted at DIR (default ./swarm); Ctrl-C ends it
	target/release/swarmfs up $(DIR)

lint: setup ## Formatting, clippy with all warnings as errors
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

fmt: ## Format the code
	cargo fmt --all

test: setup-test ## All tests, in a short form where there is a long one
	cargo build --locked --workspace --lib --bins --tests
	cargo test --locked --workspace --lib --bins --tests --no-fail-fast

soak: setup-soak release ## The full rounds and the shaped networks, with their figures (root)
	SWARM_SOAK=1 cargo test --locked --release -p swarm-fusefs --no-fail-fast --test cluster --test programs -- --test-threads=1 --nocapture

bench: setup-bench release ## The speed table, written to docs/BENCHMARKS.md (root)
	cargo bench --locked -p swarm-fusefs --bench table

clean: ## Remove what was built
	cargo clean
