//! As much of `protoc` as prost's build scripts use: `--include_imports --include_source_info -o FILE -I DIR … FILES`.
//! Building foreign crates with it needs no installed protobuf compiler.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match compile(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("protoc: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compile(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn std::error::Error>> {
    let (mut includes, mut files, mut output) = (Vec::new(), Vec::new(), None);
    let (mut imports, mut source_info) = (false, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--version" => {
                println!("libprotoc 29.0");
                return Ok(());
            }
            "--include_imports" => imports = true,
            "--include_source_info" => source_info = true,
            // Every optional field of proto3 is known to us.
            "--experimental_allow_proto3_optional" => {}
            "-o" => output = args.next().map(PathBuf::from),
            "-I" => includes.extend(args.next().map(PathBuf::from)),
            other => match (other.strip_prefix("-I"), other.strip_prefix("--descriptor_set_out=")) {
                (Some(include), _) => includes.push(PathBuf::from(include)),
                (None, Some(file)) => output = Some(PathBuf::from(file)),
                (None, None) if other.starts_with('-') => {
                    return Err(format!("unknown option {other}").into());
                }
                (None, None) => files.push(PathBuf::from(other)),
            },
        }
    }
    let output = output.ok_or("where to write the descriptors is not told (-o)")?;
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(imports).include_source_info(source_info).open_files(files)?;
    std::fs::write(output, compiler.encode_file_descriptor_set())?;
    Ok(())
}
