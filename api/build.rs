//! Compiles `proto/` with protox, so that a build needs no `protoc`.

use std::path::PathBuf;
use std::{env, error::Error, fs};

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

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PROTOS)?;
    let mut files = compiler.file_descriptor_set();

    // The exported descriptors keep the true names: the JSON mapping and reflection depend on them.
    compiler.include_source_info(false);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

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
