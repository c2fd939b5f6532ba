//! `config.toml`: stands in for options and environment variables that are not given.
//!
//! Read from `$P2PFS_CONFIG`, else `$XDG_CONFIG_HOME/p2pfs/config.toml`, else `~/.config/p2pfs/config.toml`. A file that was
//! named must exist; the others may be missing. Unknown keys are refused with their place.

use std::{io, path::PathBuf};

use serde::Deserialize;

use super::{
    Failure, What,
    args::{Args, Command, Owner},
    units::{parse_duration, parse_rate, parse_size},
};
use crate::node::address;

/// Every key, with its doc and its default, for the sample.
#[cfg(test)]
const KEYS: [(&str, &str, &str); 12] = [
    (
        "state-dir",
        "\"/var/lib/p2pfs\"",
        "Folder with one state folder for each cluster [default: $XDG_STATE_HOME/p2pfs]",
    ),
    (
        "tracker",
        "[\"tracker.example.org\"]",
        "Trackers, where the command line names none [default: those saved with the cluster]",
    ),
    (
        "cache-size",
        "\"100G\"",
        "Limit of the cache, its index included; 16M or more [default: a third of the disk's free space]",
    ),
    (
        "min-free",
        "\"1G\"",
        "What is left free on the disk of the cache [default: 1G]",
    ),
    (
        "read-timeout",
        "\"20s\"",
        "How long a read waits without progress before it fails [default: 20s]",
    ),
    (
        "upload-limit",
        "\"10M\"",
        "Most bytes of contents sent in a second, to all members together [default: no limit]",
    ),
    (
        "download-limit",
        "\"50M\"",
        "Most bytes of contents fetched in a second, from all members together [default: no limit]",
    ),
    (
        "allow-other",
        "false",
        "Let other users use the mounts [default: false]",
    ),
    (
        "no-passthrough",
        "false",
        "As root: read through p2pfs and collect small writes, instead of having the kernel read cached files by itself [default: false]",
    ),
    (
        "owner",
        "\"mounter\"",
        "Show files as owned by the mounting user or as stored: mounter or stored [default: stored for root without allow-other]",
    ),
    (
        "listen",
        "[\"/ip4/0.0.0.0/tcp/4001\"]",
        "Addresses to listen on [default: a free port, chosen once and kept]",
    ),
    (
        "node-name",
        "\"workstation\"",
        "Name of this node, as others see it [default: the host's]",
    ),
];

/// What the file holds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Config {
    state_dir: Option<PathBuf>,
    #[serde(default)]
    tracker: Vec<String>,
    cache_size: Option<String>,
    min_free: Option<String>,
    read_timeout: Option<String>,
    upload_limit: Option<String>,
    download_limit: Option<String>,
    #[serde(default)]
    allow_other: bool,
    #[serde(default)]
    no_passthrough: bool,
    owner: Option<String>,
    #[serde(default)]
    listen: Vec<String>,
    node_name: Option<String>,
}

/// Fills what the command line and the environment left open.
pub(crate) fn apply(args: &mut Args) -> Result<(), Failure> {
    let Some(path) = path() else { return Ok(()) };
    let text = match std::fs::read_to_string(&path.0) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.1 => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !path.1 => {
            err!(
                "p2pfs: warning: the configuration {} cannot be read and is left out",
                path.0.display()
            );
            return Ok(());
        }
        Err(error) => {
            return Err(error).what(format_args!(
                "the configuration {} could not be read",
                path.0.display()
            ));
        }
    };
    let wrong = |why: String| {
        Failure::usage(format_args!(
            "the configuration {} is wrong: {why}",
            path.0.display()
        ))
    };
    let config: Config = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        wrong(format!("line {line}: {}", error.message()))
    })?;
    fill(args, config).map_err(wrong)
}

fn path() -> Option<(PathBuf, bool)> {
    if let Some(named) = std::env::var_os("P2PFS_CONFIG") {
        return Some((named.into(), true));
    }
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some((home.join("p2pfs/config.toml"), false))
}

fn fill(args: &mut Args, config: Config) -> Result<(), String> {
    if args.common.state_dir.is_none() {
        args.common.state_dir = config.state_dir;
    }
    for word in &config.tracker {
        address::tracker(word).map_err(|error| error.to_string())?;
    }
    let size = |text: &Option<String>| text.as_deref().map(parse_size).transpose();
    let (cache_size, min_free) = (size(&config.cache_size)?, size(&config.min_free)?);
    let read_timeout = config
        .read_timeout
        .as_deref()
        .map(parse_duration)
        .transpose()?;
    let rate = |text: &Option<String>| text.as_deref().map(parse_rate).transpose();
    let upload_limit = rate(&config.upload_limit)?;
    let download_limit = rate(&config.download_limit)?;
    let owner = match config.owner.as_deref() {
        None => None,
        Some("mounter") => Some(Owner::Mounter),
        Some("stored") => Some(Owner::Stored),
        Some(other) => return Err(format!("{other:?} is no owner: use mounter or stored")),
    };
    match &mut args.command {
        Command::Mount(mount) => {
            if mount.tracker.is_empty() {
                mount.tracker = config.tracker;
            }
            if mount.listen.is_empty() {
                mount.listen = config.listen;
            }
            mount.cache_size = mount.cache_size.or(cache_size);
            mount.min_free = mount.min_free.or(min_free);
            mount.read_timeout = mount.read_timeout.or(read_timeout);
            mount.upload_limit = mount.upload_limit.or(upload_limit);
            mount.download_limit = mount.download_limit.or(download_limit);
            mount.allow_other |= config.allow_other;
            mount.no_passthrough |= config.no_passthrough;
            mount.owner = mount.owner.or(owner);
            mount.node_name = mount.node_name.take().or(config.node_name);
        }
        Command::Create(create) if create.tracker.is_empty() => create.tracker = config.tracker,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn sample() -> String {
        let mut text = "# p2pfs configuration. The command line wins over the environment, the environment over this file.\n".to_owned();
        for (key, example, doc) in KEYS {
            text += &format!("\n# {doc}\n#{key} = {example}\n");
        }
        text
    }

    #[test]
    fn the_sample_documents_every_key_and_is_up_to_date() {
        let uncommented: String = KEYS
            .iter()
            .map(|(key, example, _)| format!("{key} = {example}\n"))
            .collect();
        let mut args = Args::parse_from(["p2pfs", "mount", "name", "dir"]);
        let config: Config = toml::from_str(&uncommented).unwrap();
        fill(&mut args, config).unwrap();
        let Command::Mount(mount) = args.command else {
            panic!("not a mount")
        };
        assert_eq!(mount.tracker, ["tracker.example.org"]);
        assert_eq!(mount.cache_size, Some(100 << 30));
        assert_eq!(mount.min_free, Some(1 << 30));
        let committed = include_str!("../../docs/config.sample.toml");
        assert_eq!(
            committed,
            sample(),
            "write this to docs/config.sample.toml:\n{}",
            sample()
        );
    }

    #[test]
    fn the_command_line_wins_and_unknown_keys_are_refused() {
        let mut args = Args::parse_from(["p2pfs", "mount", "name", "dir", "--cache-size", "1G"]);
        let config = toml::from_str("cache-size = \"2G\"\nread-timeout = \"5s\"").unwrap();
        fill(&mut args, config).unwrap();
        let Command::Mount(mount) = args.command else {
            panic!("not a mount")
        };
        assert_eq!(mount.cache_size, Some(1 << 30));
        assert_eq!(mount.read_timeout, Some(std::time::Duration::from_secs(5)));
        assert!(toml::from_str::<Config>("cache = 1").is_err());
    }
}
