# The image: one static program, nothing else, no shell. docker build --tag gaios .
FROM rust:1.95-slim-trixie AS build
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY abuse abuse
COPY api api
COPY backoff backoff
COPY bench bench
COPY compat compat
COPY config config
COPY consensus-core consensus-core
COPY discovery discovery
COPY fair-queue fair-queue
COPY gateway gateway
COPY gateway-core gateway-core
COPY group-core group-core
COPY journal journal
COPY keyspace keyspace
COPY planet planet
COPY replica replica
COPY shard-map shard-map
COPY sim sim
COPY test-dns test-dns
COPY test-kubernetes test-kubernetes
COPY third_party third_party
COPY tls tls
COPY xtask xtask
# With a target given, the flags are for the program alone, and not for what cargo runs while it builds.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && RUSTFLAGS="-C target-feature=+crt-static" \
       cargo build --locked --release --package gateway --bin gaios --target "$target" \
    && cp "target/$target/release/gaios" /gaios

FROM gcr.io/distroless/static-debian13:nonroot
COPY --from=build /gaios /gaios
USER 65532:65532
# Clients; links; metrics, health and the status page of gateways and of nodes.
EXPOSE 2379 2380 2378 2381
ENTRYPOINT ["/gaios"]
