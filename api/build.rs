//! Compiles `proto/` with protox, so that a build needs no `protoc`.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost_types::field_descriptor_proto::Type;

/// Every file of `proto/`; each becomes part of the package it declares. A new package also needs its module in
/// `src/lib.rs`.
const PROTOS: &[&str] = &[
    "proto/auth.proto",
    "proto/election.proto",
    "proto/health.proto",
    "proto/kv.proto",
    "proto/link.proto",
    "proto/lock.proto",
    "proto/rpc.proto",
    "proto/status.proto",
];

/// Names whose plurals the snake_case rule would tear apart (`peer_ur_ls`), with what Rust shall call them.
const RUST_NAMES: &[(&str, &str)] = &[("peerURLs", "peer_urls"), ("clientURLs", "client_urls")];

/// Fields whose messages may nest in themselves, message and field. prost follows 100 levels of messages and no more, etcd
/// takes transactions that are nested deeper. Here they stay bytes, and whoever reads them bounds the depth.
const NESTED: &[(&str, &str)] = &[("RequestOp", "request_txn")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PROTOS)?;
    let mut files = compiler.file_descriptor_set();

    // The exported descriptors keep the true names: the JSON mapping and reflection depend on them.
    compiler.include_source_info(false);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    // On the wire a nested message is its length and its bytes.
    for message in files.file.iter_mut().flat_map(|file| &mut file.message_type) {
        let fields = NESTED.iter().filter(|(name, _)| message.name.as_deref() == Some(*name));
        let names: Vec<&str> = fields.map(|(_, field)| *field).collect();
        for field in message.field.iter_mut().filter(|field| names.contains(&field.name())) {
            field.set_type(Type::Bytes);
            field.type_name = None;
        }
    }
    // On the wire a field is only its number, so the names prost sees are ours to choose.
    for field in files.file.iter_mut().flat_map(|file| &mut file.message_type).flat_map(|m| &mut m.field) {
        let rust_name = RUST_NAMES.iter().find(|(name, _)| field.name() == *name);
        if let Some((_, rust_name)) = rust_name {
            field.name = Some((*rust_name).to_owned());
        }
    }
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
