//! The program under test, built once with the profile and into the target folder of the tests themselves.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Path of the `p2pfs` program, up to date with the sources.
pub fn p2pfs() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    // <target>/<profile folder>/deps/mount-<hash>
    let test = env::current_exe().expect("the test program has a path");
    let profile_dir = test
        .parent()
        .and_then(Path::parent)
        .expect("cargo puts tests into <target>/<profile>/deps");
    let target_dir = profile_dir
        .parent()
        .expect("the profile's folder lies in the target folder");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    // The whole workspace, as `cargo test --workspace` builds it: the same features, so nothing is compiled twice.
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bin",
            "p2pfs",
            "--profile",
            profile,
            "--target-dir",
        ])
        .arg(target_dir)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "p2pfs could not be built");
    profile_dir.join("p2pfs")
}
