//! Fuzz targets: everything that decodes bytes of other members, of trackers and of strangers, and what is then done with
//! them before anybody trusts them.
//!
//! A target takes any bytes and must return, soon and within [`PEAK_BYTES_MAX`] of memory. Where it decodes, it also checks
//! that what was accepted has one encoding: encoding it again gives what was decoded. Most targets hold several decoders;
//! the first byte of the input chooses.
//!
//! Each target brings seeds, made by the real encoders, so that they can't fall behind the formats. Inputs that once broke
//! something are files in `regressions/<target>/`. Both are replayed by the tests here; `run` lets libFuzzer begin with them.

mod cluster;
mod content;
mod control;
mod manifest;
mod memory;
mod messages;
mod tracker;
mod tree;

/// Most memory in use at once by what handles one input of at most 16 KiB.
pub const PEAK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One target.
pub struct Target {
    /// What it is called in `run`.
    pub name: &'static str,
    /// Takes any bytes.
    body: fn(&[u8]),
    /// Inputs that get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    target("cluster", cluster::run, cluster::seeds),
    target("content", content::run, content::seeds),
    target("control", control::run, control::seeds),
    target("manifest", manifest::run, manifest::seeds),
    target("messages", messages::run, messages::seeds),
    target("tracker", tracker::run, tracker::seeds),
    target("tree", tree::run, tree::seeds),
];

const fn target(name: &'static str, body: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, body, seeds }
}

impl Target {
    /// Runs it with an input.
    ///
    /// # Panics
    /// When the input breaks something.
    pub fn run(&self, data: &[u8]) {
        let before = memory::begin();
        (self.body)(data);
        let peak = memory::peak_since(before);
        assert!(
            peak <= PEAK_BYTES_MAX,
            "{} bytes in use for {} of input",
            peak,
            data.len()
        );
    }
}

/// Runs the decoder that the first byte chooses.
fn run_chosen(data: &[u8], decoders: &[fn(&[u8])]) {
    if let Some((&first, rest)) = data.split_first()
        && let Some(decoder) = decoders.get(usize::from(first) % decoders.len())
    {
        decoder(rest);
    }
}

/// A seed for the decoder of this number.
fn seed(decoder: u8, bytes: &[u8]) -> Vec<u8> {
    [&[decoder], bytes].concat()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn seeds_are_small_and_break_nothing() {
        for target in &TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            for seed in seeds {
                assert!(
                    seed.len() <= 16 * 1024,
                    "{}: {} bytes",
                    target.name,
                    seed.len()
                );
                target.run(&seed);
                // Cut short and damaged in places that depend on the seed alone.
                for part in 1..16 {
                    let mut damaged = seed.clone();
                    let place = damaged.len() * part / 16;
                    target.run(&damaged[..place]);
                    damaged[place] ^= 1 << (part % 8);
                    target.run(&damaged);
                }
            }
        }
    }

    #[test]
    fn what_once_broke_something_breaks_it_no_more() {
        let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
        for target in &TARGETS {
            let Ok(files) = fs::read_dir(all.join(target.name)) else {
                continue;
            };
            for file in files {
                target.run(&fs::read(file.unwrap().path()).unwrap());
            }
        }
    }

    #[test]
    fn memory_that_was_in_use_is_told_after_it_was_given_back() {
        let before = memory::begin();
        drop(vec![1u8; 10_000_000]);
        let peak = memory::peak_since(before);
        assert!(peak >= 10_000_000, "{peak}");
    }
}
