//! Generates `swarm.v1` from the `.proto` files with no system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["v1/catalog.proto", "v1/chunks.proto", "v1/holders.proto"];
    println!("cargo:rerun-if-changed=v1");
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost_bytes(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

fn prost_bytes(descriptors: &impl protox::prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
