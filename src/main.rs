//! The `p2pfs` program; everything is in the library.

fn main() -> std::process::ExitCode {
    p2pfs::cli::run()
}
