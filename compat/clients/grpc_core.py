"""Calls a server through the C core of gRPC, which puts a target's whole list of addresses into `:authority`."""

import sys

import grpc

address = sys.argv[1]
targets = [
    address,
    f"ipv4:{address},{address}",
    f"dns:///{address}",
]
# RangeRequest{key: "a"}, by hand: nothing is generated here.
request = b"\x0a\x01a"
for target in targets:
    for authority in (None, "", "a,b:1", "unix%3A%2Ftmp%2Fsocket"):
        options = [] if authority is None else [("grpc.default_authority", authority)]
        with grpc.insecure_channel(target, options=options) as channel:
            call = channel.unary_unary("/etcdserverpb.KV/Range")
            answer = call(request, timeout=30)
            assert answer, f"an empty answer, to {target} as {authority!r}"
