//! What libFuzzer drives: the target that `P2PFS_FUZZ_TARGET` names (`list` prints all names). Where `P2PFS_FUZZ_SEEDS` names
//! a folder, the target's seeds are put there first; libFuzzer reads its folders afterwards. `fuzz/run` does all of it.
#![no_main]

use std::{env, fs, process, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use p2pfs_fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn choose() -> Result<&'static Target, String> {
    let name = env::var("P2PFS_FUZZ_TARGET").map_err(|_| "P2PFS_FUZZ_TARGET is not set")?;
    if name == "list" {
        TARGETS
            .iter()
            .for_each(|target| println!("{}", target.name));
        process::exit(0);
    }
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.ok_or_else(|| format!("there is no target {name:?}"))?;
    if let Some(folder) = env::var_os("P2PFS_FUZZ_SEEDS") {
        for (index, seed) in (target.seeds)().iter().enumerate() {
            let path = std::path::Path::new(&folder).join(index.to_string());
            fs::write(&path, seed).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(target)
}

fuzz_target!(
    init: {
        match choose() {
            Ok(target) => _ = CHOSEN.set(target),
            Err(reason) => {
                eprintln!("fuzz: {reason}");
                process::exit(2);
            }
        }
    },
    |data: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            target.run(data);
        }
    }
);
