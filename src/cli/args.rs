//! The words of the command line. What stands here is a contract: names and meanings stay, options may be added.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::units::{parse_duration, parse_rate, parse_size};
use crate::{cluster::ClusterName, fs::OwnerMode};

/// A folder that separate machines share, fetched on demand and verified.
#[derive(Parser)]
#[command(
    name = "p2pfs",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(ClapArgs, Clone)]
pub(crate) struct Common {
    /// Folder with one state folder for each cluster [default: $XDG_STATE_HOME/p2pfs or ~/.local/state/p2pfs]
    #[arg(long, global = true, env = "P2PFS_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more (-vv: still more); RUST_LOG refines
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a cluster; prints its read-write id and its read-only id
    Create(CreateArgs),
    /// Print the id of a saved cluster again (it is a secret)
    Id(IdArgs),
    /// Mount a cluster on a folder
    Mount(MountArgs),
    /// Publish what is pending, unmount, end the background process
    Unmount(UnmountArgs),
    /// Run a tracker in the foreground
    Tracker(TrackerArgs),
    /// Copy files or trees into the cluster, as cp -r would
    Share(ShareArgs),
    /// Show a mount's state
    Status(StatusArgs),
    /// Show the peers of a mount
    Peers(ReportArgs),
    /// Show what is being fetched, with state, rate and sources
    Transfers(ReportArgs),
    /// Keep files or trees in the cache, now and as they change; without paths, list what is pinned
    Pin(PinArgs),
    /// Keep them there no longer
    Unpin(PathsArgs),
    /// Drop cached blocks of files or trees: never those of unpublished or pinned data, nor the last known copy
    Evict(PathsArgs),
    /// Find files by name or glob, with who holds them now
    Find(FindArgs),
    /// Show where each part of a file would come from right now, and what reads of it wait for
    Why(WhyArgs),
    /// Return when things are published, nothing is being fetched, or there are copies enough
    Wait(WaitArgs),
    /// Bring files or trees into the local cache; goes on where an earlier run stopped
    Fetch(PathsArgs),
    /// List files that were changed on two sides at once, with their copies; pick one
    Conflicts(ConflictsArgs),
    /// Follow changes and transfers, one JSON object a line
    #[command(after_long_help = EVENTS_HELP)]
    Events(EventsArgs),
    /// Check every cached block against its hash; fetch damaged ones again
    Verify(ReportArgs),
    /// Leave a cluster: delete registrations, unmount, forget the keys
    Leave(LeaveArgs),
    /// Report a peer to the trackers as inactive
    Report(ReportPeerArgs),
    /// Run a tracker and two mounts on this machine, side by side
    Demo(DemoArgs),
    /// What a mount starts beside itself: once the process is gone, break the connection that is standard output
    #[command(hide = true)]
    Guard(GuardArgs),
}

#[derive(ClapArgs)]
pub(crate) struct GuardArgs {
    /// The process that is guarded
    #[arg(value_name = "PID")]
    pub(crate) pid: i32,
}

/// Which mount is meant.
#[derive(ClapArgs, Clone, Default)]
pub(crate) struct Which {
    /// The mount: its folder, a path inside it, the cluster's name, or a state folder [default: the only one running]
    #[arg(short = 'C', value_name = "DIR-OR-NAME")]
    pub(crate) mount: Option<String>,
}

#[derive(ClapArgs)]
pub(crate) struct CreateArgs {
    /// Name to save it under [default: made from its topic]
    #[arg(long)]
    pub(crate) name: Option<ClusterName>,
    /// A tracker: host, host:port or multiaddr; may be repeated
    #[arg(long, value_name = "T", env = "P2PFS_TRACKER", value_delimiter = ',')]
    pub(crate) tracker: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct IdArgs {
    /// Name the cluster is saved under
    pub(crate) name: ClusterName,
    /// The read-only id
    #[arg(long)]
    pub(crate) read_only: bool,
}

#[derive(ClapArgs)]
pub(crate) struct MountArgs {
    /// Cluster id (with @tracker,…), a saved name, a file that holds an id, or - for standard input
    pub(crate) cluster: String,
    /// Where to mount; made where it is missing
    pub(crate) dir: PathBuf,
    /// Stay in the foreground
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// A tracker: host, host:port or multiaddr; may be repeated [default: those saved with the cluster]
    #[arg(long, value_name = "T", env = "P2PFS_TRACKER", value_delimiter = ',')]
    pub(crate) tracker: Vec<String>,
    /// Address to listen on; may be repeated [default: a free port, chosen once and kept]
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) listen: Vec<String>,
    /// A member to connect to; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) peer: Vec<String>,
    /// Refuse writing
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Limit of the cache, its index included; 16M or more [default: a third of the disk's free space]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) cache_size: Option<u64>,
    /// What is left free on the disk of the cache [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) min_free: Option<u64>,
    /// How long a read waits without progress before it fails [default: 20s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) read_timeout: Option<Duration>,
    /// Most bytes of contents sent in a second, to all members together, such as 10M [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) upload_limit: Option<u64>,
    /// Most bytes of contents fetched in a second, from all members together [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) download_limit: Option<u64>,
    /// Let other users use the mount
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// As root: read through p2pfs and collect small writes, instead of having the kernel read cached files by itself
    #[arg(long)]
    pub(crate) no_passthrough: bool,
    /// Show files as owned by the mounting user or as stored [default: stored for root without --allow-other]
    #[arg(long, value_name = "WHOSE")]
    pub(crate) owner: Option<Owner>,
    /// Where to log [default: log in the state folder, rotated at 10 MiB, five kept]
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Look for no members on the local network (nothing looks for them there yet)
    #[arg(long)]
    pub(crate) no_lan: bool,
    /// Fetch every new content unasked and keep it: an always-on full copy
    #[arg(long)]
    pub(crate) keep_all: bool,
    /// Start from an empty folder where no state of the cluster is known
    #[arg(long)]
    pub(crate) new: bool,
    /// Name of this node, as others see it [default: the host's]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// The background process of a mount: reports on standard output when it is usable
    #[arg(long, hide = true)]
    pub(crate) background: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Owner {
    Mounter,
    Stored,
}

impl From<Owner> for OwnerMode {
    fn from(owner: Owner) -> Self {
        match owner {
            Owner::Mounter => Self::Mounter,
            Owner::Stored => Self::Stored,
        }
    }
}

#[derive(ClapArgs)]
pub(crate) struct UnmountArgs {
    /// The mount's folder
    pub(crate) dir: PathBuf,
    /// Detach now, end when the last user is gone
    #[arg(long)]
    pub(crate) lazy: bool,
}

#[derive(ClapArgs)]
pub(crate) struct TrackerArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7474")]
    pub(crate) listen: String,
    /// How long a peer is known without renewing
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = parse_duration)]
    pub(crate) lease: Duration,
}

#[derive(ClapArgs)]
pub(crate) struct ShareArgs {
    /// Files or trees
    #[arg(required = true, value_name = "FILE")]
    pub(crate) sources: Vec<PathBuf>,
    /// A folder inside a mount
    pub(crate) dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// All mounts that run
    #[arg(long, conflicts_with = "mount")]
    pub(crate) all: bool,
    /// Print one JSON object (with --all an array)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct FindArgs {
    /// A name, a path, or a glob of either
    #[arg(value_name = "NAME-OR-GLOB")]
    pub(crate) pattern: String,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(ClapArgs)]
pub(crate) struct PathsArgs {
    /// Files or folders in the mount
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct PinArgs {
    /// Files or folders in the mount
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct WhyArgs {
    /// A file in the mount
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct WaitArgs {
    /// Only what is at or below these paths [default: everything]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Until everything written here is published (so by default)
    #[arg(long)]
    pub(crate) published: bool,
    /// Until nothing is being fetched
    #[arg(long)]
    pub(crate) idle: bool,
    /// Until each content is whole at N members, this one included
    #[arg(long, value_name = "N")]
    pub(crate) copies: Option<u64>,
    /// Give up after so long, with exit status 1 [default: never]
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct ConflictsArgs {
    /// Only those at or below this path
    pub(crate) path: Option<PathBuf>,
    /// The mount: its folder, a path inside it, the cluster's name, or a state folder [default: that of the path, or the
    /// only one running]
    #[arg(short = 'C', value_name = "DIR-OR-NAME", global = true)]
    pub(crate) mount: Option<String>,
    /// Print one JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// List at most so many; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) limit: u64,
    #[command(subcommand)]
    pub(crate) command: Option<ConflictsCommand>,
}

#[derive(Subcommand)]
pub(crate) enum ConflictsCommand {
    /// Make one version the only one; what is dropped is printed with its hash
    Resolve(ResolveArgs),
}

#[derive(ClapArgs)]
pub(crate) struct ResolveArgs {
    /// The file, or one of its conflict copies
    pub(crate) path: PathBuf,
    /// Which version: shown (the one under the name), the name of the node that wrote it, a copy's name, or the start of
    /// its hash (4 digits or more)
    #[arg(long, value_name = "WHICH")]
    pub(crate) keep: std::ffi::OsString,
}

/// The lines of `events`.
const EVENTS_HELP: &str = "\
Each line is an object with \"at_s\" (seconds since 1970) and \"event\":
  following   the first line: name, mountpoint
  published   this node signed a head: root, changes, all
  changed     others' changes are shown here: root, changes, all
  conflict    a file was changed on two sides at once: path, shown, copies,
              lost_here (true where this node's version has become a copy)
  settled     a conflict is none any more: path
  peer-up     a member is connected: id, node, address
  peer-down   it is gone: id, node
  damaged     bytes were damaged on this node's disk: hash, offset, length,
              repaired (true where a member gave them again)
  transfer    one has ended or stalled: path, hash, state, done_bytes,
              total_bytes, rate_bytes_per_s, sources
  lagged      so many events were passed over, because the reader was slow or
              too much happened at once: missed (0: not known)
  ended       the last line: the mount has ended (exit status 1)
\"changes\" are objects with path, change (created, changed, removed) and node
(null when not known); \"all\" says that there are more than are named. Paths
are those in the cluster; where one is not UTF-8, path_hex has its bytes.
Ctrl-C ends it with exit status 0.";

#[derive(ClapArgs)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Begin with the events that the mount still remembers (4096 at most)
    #[arg(long)]
    pub(crate) recent: bool,
    /// Accepted for uniformity: it is always JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Even when contents exist only here
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait until others hold what exists only here
    #[arg(long, conflicts_with = "force")]
    pub(crate) hand_over: bool,
    /// Drop the cache too
    #[arg(long)]
    pub(crate) purge: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ClapArgs)]
pub(crate) struct ReportPeerArgs {
    /// Peer id or node name
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(ClapArgs)]
pub(crate) struct DemoArgs {
    /// Where its folders go [default: a new folder under the temporary directory]
    pub(crate) dir: Option<PathBuf>,
    /// Copy real data through the two mounts, compare, report, end
    #[arg(long)]
    pub(crate) check: bool,
}
